# Dies of the second free in RCU's softirq, boots again, and must be told what happened.
keeps_memory
if [ ! -e /results/first ]; then
    touch /results/first
    start err-first
    wait_alive
    die again
    sleep 20
    wrong "it did not die"
    exit 1
fi
ls -l /sys/fs/pstore /var/lib/systemd/pstore >/results/pstore 2>&1
cp -r /sys/fs/pstore /results/pstore-files
watch
for said in 'ended in a kernel panic' 'verdict in the trace buffer: double_free: inode 12' \
    'called from .crime.' 'evicted by rm' 'kernel BUG at'; do
    grep -q "$said" /results/err || wrong "the log does not say: $said"
done
curl -s localhost:9866/metrics | grep -q 'last_boot_ended{how="panic"} 1.0' || wrong "no metric"
grep -h 'verdict in the trace buffer' /results/err | head -1 | sed 's/^.*trace buffer: //' >/results/figures
[ ! -s /results/why ]
