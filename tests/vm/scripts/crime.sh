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
finish
