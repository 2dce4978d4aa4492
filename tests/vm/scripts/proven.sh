# The installed unit, under systemd as PID 1: it sees everything, and may do little.
wait_alive
systemctl status --no-pager ebpfwatch >/results/status 2>&1
grep -q 'Status: ".*hooks proven alive' /results/status || wrong "no status line"
# Under the unit's lines nothing is blind: no sink is missing, and root is root no more.
journalctl --no-pager -u ebpfwatch >/results/err
grep 'an oops will not print\|cannot go to /dev/kmsg' /results/err && wrong "the unit blinds it"
grep CapBnd /proc/$(systemctl show -p MainPID --value ebpfwatch)/status >/results/capabilities
case $(uname -r) in
4.*) bounding=0000000400200000 ;; # syslog, sys_admin
*) # bpf, perfmon, syslog, and sys_admin for a distribution's restricted perf
    [ $(cat /proc/sys/kernel/perf_event_paranoid) -lt 3 ] && bounding=000000c400000000 || bounding=000000c400200000 ;;
esac
sed 's/fentry [a-z0-9_]*: attaching: not supported by this kernel//g' /results/err | grep 'attaching: ' &&
    wrong "the unit keeps a hook from its place"
grep -q $bounding /results/capabilities || wrong "capabilities: $(cat /results/capabilities)"
timeout 60 ebpfwatch selftest >/results/selftest 2>&1 || wrong "the self-test"
die benign
confirmed
journalctl --no-pager -o verbose EBPFWATCH_VERDICT=double_free EBPFWATCH_TEST=0 >/results/journal
for field in PRIORITY=2 EBPFWATCH_INODE=12 EBPFWATCH_CONFIDENCE=confirmed 'EBPFWATCH_RESPONSIBLE=module crime'; do
    grep -q "$field" /results/journal || wrong "the journal has no $field"
done
journalctl --no-pager -x EBPFWATCH_VERDICT=double_free EBPFWATCH_TEST=0 | grep -q free.list.is.damaged ||
    wrong "the journal does not explain the finding"
ebpfwatch check --all >/results/check 2>&1
[ $? -le 1 ] || wrong "check cannot watch here"
grep -q 'vdd > virtio_blk' /results/check || wrong "check does not follow the disk down"
ebpfwatch report --full >/results/report 2>&1 || wrong "report"
grep -q '\[crime' /results/report || wrong "the report does not name the module"
