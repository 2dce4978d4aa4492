# What the people of the case saw first: dentry_free's warning, on a machine short of memory. A directory is put twice too
# often under three children: reclaim kills it with the first of them, and again with each of the others. The early
# warning must come of it, with its three reasons. (With more children the kernel dies before anybody can ask it.)
watch
sed -i 's/burst_inodes: .*/burst_inodes: 200/' /tmp/config.yaml
kill -HUP $daemon
# A tenth of memory from mark to mark, so that kswapd works long before anything is killed.
echo 1000 >/proc/sys/vm/watermark_scale_factor
made 3000 /mnt/vdb/crowd-
mkdir /mnt/vdb/dir
for i in 1 2 3; do : >/mnt/vdb/dir/$i; done
sync
insmod causes.ko cause=dir_put path=/mnt/vdb/dir often=2 || exit 3
noted causes
python3 hog.py 100 &
echo 1 >/sys/module/causes/parameters/go
# kswapd does not always come as far as the dentries; the crowd is what the next reclaim finds.
for i in $(seq 10); do
    sleep 10
    dmesg | grep -q 'WARNING.*dentry_free\|dcache.c' && break
    echo 2 >/proc/sys/vm/drop_caches
    made 1000 /mnt/vdb/more-$i-
done
await 'ebpfwatch_early_warning 1.0'
finish
grep -q 'kernel_log_events_total{kind="dentry_[a-z_]*"} [1-9]' /results/metrics || wrong "the warning was not counted"
journalctl --no-pager -o verbose MESSAGE_ID=f68048250df04df29d73b7b3bc7b732d >/results/early
for reason in EBPFWATCH_PRESSURE=free EBPFWATCH_BURST= 'EBPFWATCH_PRECURSOR=the kernel said'; do
    grep -q "$reason" /results/early || wrong "the journal has no $reason"
done
grep -h 'EBPFWATCH_\(PRESSURE\|BURST\|PRECURSOR\)' /results/early >/results/figures
grep -L '"verdict": *"\(dentry_killed\|evicted_in_use\)' $(ls /state/state/findings/*.json 2>/dev/null) /dev/null |
    grep json && wrong "a finding, where no inode was freed twice"
[ ! -s /results/why ]
