# What can befall a machine and not only a process: a CPU taken away and given back, the clock set forth and back, a
# suspend, ext4 mounted and unmounted, all under load. Afterwards the hooks are alive, the counters add up, and a second
# free is found.
watch
(while [ ! -e /tmp/enough ]; do for i in $(seq 100); do : >/mnt/vdb/l-$i; done; rm -f /mnt/vdb/l-*; done) &
load=$!
fault() { echo "$1 $2" >>/results/figures; }
cpu=/sys/devices/system/cpu/cpu1/online
for round in 1 2 3; do
    echo 0 >$cpu && sleep 3 && [ $(cat $cpu) = 0 ] && echo 1 >$cpu && sleep 3 && fault cpu_offline $round ||
        wrong "cpu 1 could not be taken away"
done
for step in '+3 days' '-6 days' '+3 days'; do
    date -s "$step" >/dev/null && sleep 3 && fault clock_step "$step"
done
if rtcwake -m freeze -s 10 >/results/suspend 2>&1; then
    fault suspend "$(tail -1 /results/suspend)"
else
    echo "suspend: $(tail -1 /results/suspend)" >>/results/figures
fi
[ ! -e loop.ko ] || insmod loop.ko
truncate -s 64M /mnt/vdb/small.img
mke2fs -q -F -t ext4 /mnt/vdb/small.img
mkdir -p /mnt/small
for round in 1 2 3 4 5; do
    mount -o loop /mnt/vdb/small.img /mnt/small || wrong "mount $round"
    for i in $(seq 200); do : >/mnt/small/$i; done
    rm /mnt/small/1*
    umount /mnt/small || wrong "umount $round"
    fault unmount $round
done
touch /tmp/enough
wait $load
echo 2 >/proc/sys/vm/drop_caches
# What a CPU's buffer lost while it was away was its only loss; from here on there is none.
sleep 12
curl -s localhost:9866/metrics >/results/metrics-before
await 'hook_alive.hook=.evict.. 1.0'
wait_alive
die benign
confirmed
finish
for hook in $(sed -n 's/^ebpfwatch_hook_alive{hook="\([a-z_]*\)"} \(0.0\|NaN\)$/\1/p' /results/metrics); do
    wrong "the hook $hook is not alive"
done
python3 sums.py 1000 double_free >>/results/figures || wrong "the counters could not be read"
grep WRONG /results/figures | grep -v 'lost submit' >>/results/why
lost() { sed -n 's/^ebpfwatch_lost_events_total{kind="submit"} //p' $1; }
[ "$(lost /results/metrics-before)" = "$(lost /results/metrics)" ] || wrong "a CPU's buffer was not opened anew"
kill -0 $daemon || wrong "the daemon is gone"
dmesg | grep -v 'command line' | grep -i 'oops\|bug:\|warning:' && wrong "the kernel complained"
[ ! -s /results/why ]
