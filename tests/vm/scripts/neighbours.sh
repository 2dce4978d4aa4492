# $1: minutes of legal work that lies near the mistakes of causes.ko, kind after kind. Nothing may be said of any.
watch
kill -USR2 $daemon # with the armed hooks (docs/contracts.md)
for module in loop overlay fuse quota_tree quota_v2; do [ ! -e $module.ko ] || insmod $module.ko; done
python3 neighbours.py "$1" /mnt/vdb >/results/figures 2>&1 || wrong "$(tail -1 /results/figures)"
finish
python3 sums.py 0 >>/results/figures || wrong "the counters could not be read"
# A CPU that is taken away may take what its own buffer held with it (perf buffers, before Linux 5.8).
grep WRONG /results/figures | grep -v 'lost submit' >>/results/why
kill -0 $daemon || wrong "the daemon is gone"
dmesg | grep -v 'command line' | grep -i 'oops\|bug:\|warning:' && wrong "the kernel complained"
[ ! -s /results/why ]
