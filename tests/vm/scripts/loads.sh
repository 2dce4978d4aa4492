# Loads and unloads in a row; the kernel must have nothing to say about it.
stop
dmesg -C
for round in $(seq 20); do
    start err-$round
    for i in $(seq 300); do
        grep -q 'ready after' /results/err-$round && break
        sleep 1
    done
    grep -q 'ready after' /results/err-$round || wrong "round $round was not ready"
    kill $daemon
    wait $daemon || wrong "round $round ended with $?"
    bpftool prog show 2>/dev/null | grep -q ext4_evict && wrong "round $round left programs"
done
cp /results/err-20 /results/err
grep 'ready after' /results/err-* >/results/ready
dmesg | grep -v 'trace_printk\|^\[ *[0-9.]*\] \*\*\|random:' >/results/said
grep -i 'warn\|bug\|oops\|leak\|error' /results/said && wrong "the kernel complained"
[ ! -s /results/why ]
