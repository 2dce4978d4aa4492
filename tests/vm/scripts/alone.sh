# $1: the crime's name; $2: "sampled" for a victim that KFENCE watches. What the kernel itself notices.
victims() { for file in $(seq 500); do echo x >/mnt/vdb/victim$file; done; }
victims
if [ "$2" = sampled ]; then
    for try in $(seq 6); do
        insmod crime.ko path=/mnt/vdb/victim scenario=$1 sampled=500 && break
        rm /mnt/vdb/victim*
        echo 3 >/proc/sys/vm/drop_caches # what KFENCE holds goes back to its pool
        sleep 2
        victims
    done
    grep -q '^crime ' /proc/modules || { wrong "KFENCE sampled none of 500, six times"; exit 3; }
else
    insmod crime.ko path=/mnt/vdb/victim1 scenario=$1 || exit 3
fi
rm /mnt/vdb/victim*
[ "$1" = late ] && sleep 3
sleep 2
for cpu in 0 1; do
    taskset -c $cpu sh -c "for i in \$(seq 2000); do : >/mnt/vdb/new-$cpu-\$i; done" &
    last=$!
done
wait $last
rm /mnt/vdb/new-*
sleep 10
dmesg >/results/dmesg
