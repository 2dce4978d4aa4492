# $1: minutes of ordinary work at different priorities, while a CPU goes and comes. Nothing may be said of it.
watch
kill -USR2 $daemon # with the armed hooks (docs/contracts.md)
python3 load.py "$1" /mnt/vdb >/results/load 2>&1 &
load=$!
cpu=/sys/devices/system/cpu/cpu1/online
while kill -0 $load; do
    sleep 15
    find /usr -xdev >/dev/null 2>&1
    echo 2 >/proc/sys/vm/drop_caches
    echo 0 >$cpu && sleep 5 && echo 1 >$cpu || wrong "cpu 1 could not be taken away and given back"
done
wait $load || wrong "the load: $(tail -1 /results/load)"
echo 2 >/proc/sys/vm/drop_caches
sleep 10
finish
{
    tail -1 /results/load
    python3 sums.py 1000 || wrong "the counters could not be read"
} >/results/figures
# A CPU that is taken away may take what its own buffer held with it (perf buffers, before Linux 5.8).
grep WRONG /results/figures | grep -v 'lost submit' >>/results/why
kill -0 $daemon || wrong "the daemon is gone"
dmesg | grep -v 'command line' | grep -i 'oops\|bug:\|warning:' && wrong "the kernel complained"
[ ! -s /results/why ]
