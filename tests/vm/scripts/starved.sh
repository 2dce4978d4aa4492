# The unit at its MemoryMax: the kernel kills the daemon and nothing else, systemd starts it again but not for ever, and
# no program stays behind.
mkdir -p /usr/share/man/man5 /usr/share/man/man8
dpkg -i ebpfwatch_*_all.deb >/results/dpkg 2>&1 || wrong "the installation"
daemon=
wait_alive
first=$(systemctl show -p MainPID --value ebpfwatch)
systemctl set-property --runtime ebpfwatch MemoryMax=12M
for i in $(seq 60); do
    curl -s --max-time 5 localhost:9866/metrics >/dev/null
    [ "$(systemctl show -p MainPID --value ebpfwatch)" = "$first" ] || break
    sleep 1
done
[ "$(systemctl show -p MainPID --value ebpfwatch)" != "$first" ] || wrong "the limit killed nobody"
dmesg | grep -q 'Memory cgroup out of memory: Kill.*' || wrong "the kernel did not say that it killed it"
# With so little memory no start succeeds: systemd must give up, not load programs for ever.
for i in $(seq 150); do
    [ "$(systemctl is-active ebpfwatch)" = failed ] && break
    sleep 2
done
systemctl show -p NRestarts -p Result -p ActiveState ebpfwatch >/results/figures
[ "$(systemctl is-active ebpfwatch)" = failed ] || wrong "it is started for ever: $(cat /results/figures)"
sleep 2
bpftool prog show 2>/dev/null | grep -q 'name on_\|ext4_evict' && wrong "programs are left"
# With its own limit back it runs again, and knows how it ended.
systemctl set-property --runtime ebpfwatch MemoryMax=
systemctl reset-failed ebpfwatch
systemctl start ebpfwatch || wrong "it does not start again"
wait_alive
journalctl --no-pager -u ebpfwatch >/results/err
grep -q Traceback /results/err && wrong "a traceback"
dmesg | grep 'out of memory' >/results/killed
[ ! -s /results/why ]
