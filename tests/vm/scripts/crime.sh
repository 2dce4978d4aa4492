# $1: the crime's name.
watch
die $1
if [ "$1" = reused ]; then
    for cpu in 0 1; do
        taskset -c $cpu sh -c "for i in \$(seq 3000); do : >/mnt/vdb/new-$cpu-\$i; done" &
        last=$!
    done
    wait $last
fi
logged "crime: $1 object" # else the judge says that it was not committed
# The daemon may be late on a busy machine; where nothing is to be found, this costs a minute.
for i in $(seq 60); do
    curl -s localhost:9866/metrics | grep -q '^ebpfwatch_findings_total{.*test="false".*} [1-9]' && break
    sleep 1
done
finish
