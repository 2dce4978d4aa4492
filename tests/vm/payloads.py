"""What a guest runs, scenario by scenario: shell, because it is the user's own hands there.

A payload that judges itself exits 0 or says in ``/results/why`` what was wrong.
"""

# ruff: noqa: E501 - shell

from __future__ import annotations

__all__ = ["CHURN", "IMAGE", "LOADS", "RAMOOPS", "REBOOT", "SERVICE", "crime"]

_HEADERS = """\
if [ -d headers ]; then
    mkdir -p /lib/modules/$(uname -r)
    ln -sfn /payload/headers /lib/modules/$(uname -r)/build
fi
export PYTHONDONTWRITEBYTECODE=1
sed 's#/var/lib/ebpfwatch#/results/state#' config.example.yaml >/tmp/config.yaml
start() {
    python3 -m ebpfwatch run --config /tmp/config.yaml >/results/out 2>/results/$1 &
    daemon=$!
}
wrong() { echo "$*" >>/results/why; }
alive='hook_alive.hook=.any_free.. 1.0'
wait_alive() {
    for i in $(seq 300); do
        curl -s localhost:9866/metrics | grep -q "$alive" && return 0
        sleep 0.5
    done
    wrong "the hooks were not proven alive"
    return 1
}
metric() { curl -s localhost:9866/metrics | sed -n "s/^$1 //p"; }
"""

_RUN = (
    _HEADERS
    + """\
start err
wait_alive
"""
)

_CRIME = """\
echo x >/mnt/vdb/victim
insmod crime.ko path=/mnt/vdb/victim scenario={name} || exit 3
sleep 8  # the daemon notes new modules every 5 s; a real culprit is loaded for days
rm /mnt/vdb/victim
"""

_SHRINK = """\
echo x >/mnt/vdb/victim
sync
insmod crime.ko path=/mnt/vdb/victim scenario=shrink || exit 3
for i in 1 2 3; do echo 3 >/proc/sys/vm/drop_caches; done
"""

_REUSE = """\
for cpu in 0 1; do
    taskset -c $cpu sh -c "for i in \\$(seq 3000); do : >/mnt/vdb/new-$cpu-\\$i; done" &
    last=$!
done
wait $last
"""

_LEGAL = """\
for i in $(seq 300); do : >/mnt/vdb/race-$i; done
for task in 1 2; do
    (for i in $(seq 300); do rm -f /mnt/vdb/race-$i; done) &
    last=$!
done
echo 2 >/proc/sys/vm/drop_caches
wait $last
"""

_END = """\
sleep 6
curl -s localhost:9866/metrics >/results/metrics
dmesg >/results/dmesg
"""


def crime(name: str) -> str:
    """The daemon, then the crime of this name, then what the metrics say."""
    if name == "legal":
        return _RUN + _LEGAL + _END
    if name == "shrink":
        return _RUN + _SHRINK + _END
    return _RUN + _CRIME.format(name=name) + (_REUSE if name == "reused" else "") + _END


#: The installed unit, under systemd as PID 1: it sees everything, and may do little.
_PROVEN = """\
wait_alive
systemctl status --no-pager ebpfwatch >/results/status 2>&1
grep -q 'Status: ".*hooks proven alive' /results/status || wrong "no status line"
# Under the unit's lines nothing is blind: no sink is missing, and root is root no more.
journalctl --no-pager -u ebpfwatch >/results/err
grep 'an oops will not print\\|cannot go to /dev/kmsg' /results/err && wrong "the unit blinds it"
grep CapBnd /proc/$(systemctl show -p MainPID --value ebpfwatch)/status >/results/capabilities
case $(uname -r) in
4.*) bounding=0000000400200000 ;; # syslog, sys_admin
*) bounding=000000c400000000 ;; # bpf, perfmon, syslog
esac
grep -q $bounding /results/capabilities || wrong "capabilities: $(cat /results/capabilities)"
timeout 60 ebpfwatch selftest >/results/selftest 2>&1 || wrong "the self-test"
echo x >/mnt/vdb/victim
insmod crime.ko path=/mnt/vdb/victim scenario=benign || wrong "insmod"
sleep 8
rm /mnt/vdb/victim
sleep 8
journalctl --no-pager -o verbose EBPFWATCH_VERDICT=double_free EBPFWATCH_TEST=0 >/results/journal
for field in PRIORITY=2 EBPFWATCH_INODE=12 EBPFWATCH_CONFIDENCE=confirmed 'EBPFWATCH_RESPONSIBLE=module crime'; do
    grep -q "$field" /results/journal || wrong "the journal has no $field"
done
journalctl --no-pager -x EBPFWATCH_VERDICT=double_free EBPFWATCH_TEST=0 | grep -q free.list.is.damaged ||
    wrong "the journal does not explain the finding"
counted='ebpfwatch_findings_total{confidence="confirmed",test="false",verdict="double_free"}'
[ "$(metric "$counted")" = 1.0 ] || wrong "the metric says $(metric "$counted")"
ebpfwatch report >/results/report 2>&1 || wrong "report"
grep -q '\\[crime' /results/report || wrong "the report does not name the module"
"""

_PURGED = """\
dpkg --purge "$package" >/results/purge 2>&1 || wrong "the purge"
ls -d /etc/ebpfwatch /var/lib/ebpfwatch /run/ebpfwatch 2>/dev/null && wrong "the purge left something"
[ ! -s /results/why ]
"""

#: The package, its unit, and the refusals of both.
SERVICE = (
    _HEADERS
    + """\
package=ebpfwatch
mkdir -p /usr/share/man/man5 /usr/share/man/man8
dpkg -i ebpfwatch_*_all.deb >/results/dpkg 2>&1 || wrong "the installation"
systemctl is-active ebpfwatch || wrong "the installation did not start the unit"
"""
    + _PROVEN
    + """\
systemctl restart ebpfwatch || wrong "restart"
[ "$(systemctl show -p NRestarts --value ebpfwatch)" = 0 ] || wrong "it restarted by itself"
systemctl stop ebpfwatch || wrong "stop"
bpftool prog show 2>/dev/null | grep -q 'name on_\\|ext4_evict' && wrong "programs are left"
# A configuration nobody can run, and a kernel without the means: one line, and no restart.
echo 'nonsense: 1' >/etc/ebpfwatch/config.yaml
systemctl start ebpfwatch 2>/dev/null && wrong "it started with nonsense"
sleep 3
[ "$(systemctl show -p NRestarts --value ebpfwatch)" = 0 ] || wrong "it restarts for nonsense"
cp config.example.yaml /etc/ebpfwatch/config.yaml
if [ -d headers ]; then
    rm /lib/modules/$(uname -r)/build
    systemctl reset-failed ebpfwatch
    systemctl start ebpfwatch 2>/dev/null && wrong "it started without BTF and headers"
    sleep 3
    [ "$(systemctl show -p ExecMainStatus --value ebpfwatch)" = 69 ] || wrong "not exit 69"
    [ "$(systemctl show -p NRestarts --value ebpfwatch)" = 0 ] || wrong "it restarts for ever"
fi
journalctl --no-pager -u ebpfwatch >/results/err
grep -q Traceback /results/err && wrong "a traceback"
systemctl reset-failed ebpfwatch
"""
    + _PURGED
)

#: The self-contained image, on a host that has lost its Python and its compiler.
IMAGE = (
    _HEADERS
    + """\
package=ebpfwatch-image
rm -rf /usr/bin/python3* /usr/lib/python3* /usr/lib/*/libbcc* /usr/lib/*/libLLVM* /usr/lib/*/libclang*
dpkg -i ebpfwatch-image_*_arm64.deb >/results/dpkg 2>&1 || wrong "the installation"
systemctl is-active ebpfwatch || wrong "the installation did not start the unit"
"""
    + _PROVEN
    + """\
systemctl stop ebpfwatch || wrong "stop"
bpftool prog show 2>/dev/null | grep -q 'name on_\\|ext4_evict' && wrong "programs are left"
journalctl --no-pager -u ebpfwatch >/results/err
"""
    + _PURGED
)

#: Loads and unloads in a row; the kernel must have nothing to say about it.
LOADS = (
    _HEADERS
    + """\
dmesg -C
for round in $(seq 20); do
    start err-$round
    for i in $(seq 400); do
        grep -q 'ready after' /results/err-$round && break
        sleep 0.5
    done
    grep -q 'ready after' /results/err-$round || wrong "round $round was not ready"
    kill $daemon
    wait $daemon || wrong "round $round ended with $?"
    bpftool prog show 2>/dev/null | grep -q ext4_evict && wrong "round $round left programs"
done
cp /results/err-20 /results/err
dmesg | grep -v 'trace_printk\\|^\\[ *[0-9.]*\\] \\*\\*\\|random:' >/results/said
grep -i 'warn\\|bug\\|oops\\|leak\\|error' /results/said && wrong "the kernel complained"
[ ! -s /results/why ]
"""
)

#: 1 MB behind the kernel's memory that survives a reset (guests have 1024 MB from 0x40000000).
RAMOOPS = (
    "mem=960M panic=1 ramoops.mem_address=0x7c000000 ramoops.mem_size=0x100000"
    " ramoops.record_size=0x20000 ramoops.console_size=0x20000 ramoops.pmsg_size=0x20000"
)

#: Dies of the second free in RCU's softirq, boots again, and must be told what happened.
REBOOT = (
    _HEADERS
    + """mount -t pstore none /sys/fs/pstore 2>/dev/null
if [ ! -e /results/first ]; then
    touch /results/first
    start err-first
    wait_alive
"""
    + _CRIME.format(name="again")
    + """    sleep 20
    wrong "it did not die"
    exit 1
fi
ls -l /sys/fs/pstore /var/lib/systemd/pstore >/results/pstore 2>&1
cp -r /sys/fs/pstore /results/pstore-files
start err
wait_alive
for said in 'ended in a kernel panic' 'verdict in the trace buffer: double_free: inode 12' \\
    'called from .crime.' 'evicted by rm' 'kernel BUG at'; do
    grep -q "$said" /results/err || wrong "the log does not say: $said"
done
curl -s localhost:9866/metrics | grep -q 'last_boot_ended{how="panic"} 1.0' || wrong "no metric"
[ ! -s /results/why ]
"""
)

#: Deaths by the ten thousand: files, trees, drop_caches, and memory pressure until kswapd works.
CHURN = (
    _RUN
    + """\
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
python3 - $stop <<'P' &
import sys, time
while time.time() < int(sys.argv[1]):
    hold = []
    try:
        for line in iter(lambda: open("/proc/meminfo").read(), ""):
            if int(line.split("MemAvailable:")[1].split()[0]) < 90000:
                break
            hold.append(bytearray(b"x" * (8 << 20)))
    except MemoryError:
        pass
    time.sleep(3)
    del hold
P
while [ $(date +%s) -lt $stop ]; do
    cat /usr/lib/python3/dist-packages/*/*.py /usr/share/*/* >/dev/null 2>&1
    find / -xdev >/dev/null 2>&1
    echo 2 >/proc/sys/vm/drop_caches
done
sleep 8
curl -s localhost:9866/metrics >/results/metrics
grep -E '^(pgscan_kswapd|pgsteal_kswapd|slabs_scanned)' /proc/vmstat >/results/vmstat
cat >/tmp/books.py <<'P'
import re
text = open("/results/metrics").read()
def get(kind, name):
    return int(float(re.search(rf'{kind}{{\\w+="{name}"}} (\\S+)', text).group(1)))
event = lambda name: get("ebpfwatch_lifecycle_events_total", name)
lost = lambda name: get("ebpfwatch_lost_events_total", name)
print("evicted", event("evict"), "in reclaim", event("evict_in_reclaim"), "freed", event("free"),
      "missed", lost("free_missed"), "forgotten", lost("forgotten_dying"), "torn", lost("torn"))
for kind in ("submit", "decode", "queue", "reclaim_context"):
    if lost(kind):
        print("WRONG: lost", kind, lost(kind))
gap = event("evict") - event("free") - lost("free_missed") - lost("forgotten_dying") - lost("torn")
if not 0 <= gap <= 64:
    print("WRONG: evictions unexplained:", gap)
if event("evict") < 1000 or not event("evict_in_reclaim"):
    print("WRONG: not much of a churn")
found = re.findall(r'findings_total{[^}]*test="false",verdict="(\\w+)"} (\\S+)', text)
found = [v for v, n in found if float(n) and v not in ("concurrent_unlink", "freed_in_reclaim")]
if found:
    print("WRONG: findings", found)
P
python3 /tmp/books.py >/results/books
grep WRONG /results/books >>/results/why
grep -q 'pgscan_kswapd[_a-z]* [1-9]' /results/vmstat || wrong "kswapd did not work"
dmesg | grep -v 'command line' | grep -i 'oops\\|bug:\\|warning:' && wrong "the kernel complained"
[ ! -s /results/why ]
"""
)
