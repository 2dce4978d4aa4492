# $1: minutes for each kind of legal work that lies near a mistake of causes.ko. Nothing may be said of any.
watch
kill -USR2 $daemon # with the armed hooks (docs/contracts.md)
for module in loop overlay fuse quota_tree quota_v2; do [ ! -e $module.ko ] || insmod $module.ko; done
python3 neighbours.py "$1" /mnt/vdb >/results/figures 2>&1 || wrong "$(tail -1 /results/figures)"
grep WRONG /results/figures >>/results/why
finish
kill -0 $daemon || wrong "the daemon is gone"
dmesg | grep -v 'command line' | grep -i 'oops\|bug:\|warning:' && wrong "the kernel complained"
[ ! -s /results/why ]
