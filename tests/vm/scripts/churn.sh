# Deaths by the ten thousand: files, trees, drop_caches, and memory pressure until kswapd works.
watch
stop=$(($(date +%s) + 150))
python3 - $stop <<'P' &
import os, sys, time
while time.time() < int(sys.argv[1]):
    for i in range(200):
        open(f"/mnt/vdb/a{i}", "w").close()
    for i in range(200):
        os.unlink(f"/mnt/vdb/a{i}")
    for i in range(100):
        os.makedirs(f"/mnt/vdb/d/{i}", exist_ok=True)
        open(f"/mnt/vdb/d/{i}/f", "w").write("x" * 100)
    for i in range(100):
        os.rename(f"/mnt/vdb/d/{i}/f", f"/mnt/vdb/d/{i}/g")
        os.unlink(f"/mnt/vdb/d/{i}/g")
        os.rmdir(f"/mnt/vdb/d/{i}")
P
python3 hog.py 150 &
while [ $(date +%s) -lt $stop ]; do
    cat /usr/lib/python3/dist-packages/*/*.py /usr/share/*/* >/dev/null 2>&1
    find / -xdev >/dev/null 2>&1
    echo 2 >/proc/sys/vm/drop_caches
done
sleep 8
curl -s --max-time 60 --retry 5 --retry-all-errors localhost:9866/metrics >/results/metrics
grep -E '^(pgscan_kswapd|pgsteal_kswapd|slabs_scanned)' /proc/vmstat >/results/vmstat
python3 sums.py 1000 >/results/figures || wrong "the counters could not be read"
kill -0 $daemon || wrong "the daemon is gone"
grep WRONG /results/figures >>/results/why
grep -q 'pgscan_kswapd[_a-z]* [1-9]' /results/vmstat || wrong "kswapd did not work"
dmesg | grep -v 'command line' | grep -i 'oops\|bug:\|warning:' && wrong "the kernel complained"
[ ! -s /results/why ]
