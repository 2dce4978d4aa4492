# Two tasks delete the same files at once, and reclaim works meanwhile: nothing is wrong with that.
watch
for i in $(seq 300); do : >/mnt/vdb/race-$i; done
for task in 1 2; do
    (for i in $(seq 300); do rm -f /mnt/vdb/race-$i; done) &
    last=$!
done
echo 2 >/proc/sys/vm/drop_caches
wait $last
finish
