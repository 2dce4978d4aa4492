# The package's drop-ins for actions, under its unit: what the unit refuses without each, and lets through with it. At
# the end the machine is crashed; at the next boot systemd starts the unit, and the daemon says why it was.
keeps_memory
if [ -e /results/first ]; then
    [ ! -e /results/second ] || { wrong "it was crashed twice"; exit 1; }
    touch /results/second
    wait_alive
    journalctl --no-pager -b -u ebpfwatch >/results/err
    for said in 'ended in a kernel panic' 'finding on disk: double_free' 'verdict in the trace buffer: double_free'; do
        grep -qi "$said" /results/err || wrong "the log does not say: $said"
    done
    grep -q Traceback /results/err && wrong "a traceback"
    [ ! -s /results/why ]
    exit
fi
touch /results/first
# $1: the program's result that the metrics must show.
tried() { await "actions_total{action=\"command\",result=\"$1\"} 1.0"; }
# $1: a file of the package; as its own first lines say.
link() {
    ln -s /usr/share/ebpfwatch/$1 /etc/systemd/system/ebpfwatch.service.d/
    systemctl daemon-reload && systemctl restart ebpfwatch || wrong "it does not start with $1"
    wait_alive
}
# For IPAddressAllow=localhost (127.0.0.0/8 and ::1) an address of another network is another machine's, wherever it is.
python3 far.py 192.0.2.1 /results/far &
cat >/usr/local/sbin/call-out <<'END'
#!/bin/sh
exec curl -s --fail --max-time 5 --data-binary @- http://192.0.2.1:9999/
END
chmod 755 /usr/local/sbin/call-out
mkdir -p /usr/share/man/man5 /usr/share/man/man8 /etc/ebpfwatch
sed 's#  command: ""#  command: /usr/local/sbin/call-out#; s/  crash: never/  crash: confirmed/
    s/cpu_percent: [0-9.]*/cpu_percent: 0/' config.example.yaml >/etc/ebpfwatch/config.yaml
# An emulated guest beside other work needs longer for the first start than a machine does.
mkdir -p /etc/systemd/system/ebpfwatch.service.d
printf '[Service]\nTimeoutStartSec=1200\n' >/etc/systemd/system/ebpfwatch.service.d/slow.conf
dpkg --force-confold -i ebpfwatch_*_all.deb >/results/dpkg 2>&1
sleep 3
systemctl show -p ExecMainStatus -p NRestarts ebpfwatch >/results/refused
grep -q ExecMainStatus=77 /results/refused || wrong "without the drop-in for actions.crash: not exit 77"
journalctl --no-pager -u ebpfwatch | grep 'actions.crash: cannot open' || wrong "it does not say what it cannot open"

link actions-crash.conf
timeout 600 ebpfwatch selftest --timeout 60 >/results/selftest 2>&1 || wrong "the self-test"
tried 'failed'
[ ! -e /results/far ] || wrong "the program called out without the drop-in"

link actions-network.conf
timeout 600 ebpfwatch selftest --timeout 60 >>/results/selftest 2>&1 || wrong "the second self-test"
tried 'done'
grep -q '"test": *true' /results/far || wrong "the finding did not arrive"
journalctl --no-pager -u ebpfwatch >/results/err-first
sync
die benign
sleep 20
wrong "it was not crashed"
exit 1
