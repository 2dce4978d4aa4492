# The package, its unit, and the refusals of both.
package=ebpfwatch
mkdir -p /usr/share/man/man5 /usr/share/man/man8
# An earlier version with another default, its configuration edited: the upgrade keeps that, and restarts the unit.
config=/etc/ebpfwatch/config.yaml
dpkg-deb -R ebpfwatch_*_all.deb /tmp/older
sed -i 's/^Version: .*/Version: 0.0.1/' /tmp/older/DEBIAN/control
echo '# the default of 0.0.1' >>/tmp/older$config
dpkg-deb --root-owner-group -Znone -b /tmp/older /tmp/older.deb
dpkg -i /tmp/older.deb >/results/dpkg 2>&1 || wrong "the installation"
systemctl is-active ebpfwatch || wrong "the installation did not start the unit"
older=$(systemctl show -p MainPID --value ebpfwatch)
sed -i 's/keep: 1000/keep: 17/' $config
dpkg --force-confold -i ebpfwatch_*_all.deb >>/results/dpkg 2>&1 || wrong "the upgrade"
grep -q 'keep: 17' $config || wrong "the upgrade took the operator's words"
systemctl is-active ebpfwatch || wrong "the upgrade did not start the unit"
[ "$(systemctl show -p MainPID --value ebpfwatch)" != "$older" ] || wrong "the upgrade left the old one running"
journalctl --no-pager -u ebpfwatch >/results/err
. ./proven.sh
# Its memory as a dump, with the daemon's finding in it, and a mistake that is taken back before anything meets it; read
# without debug information, by the kernel's own types and symbols (tests/vm/reading.py).
case $(uname -r) in
4.* | 5.*) ;; # vmcoreinfo does not tell where the symbols are
*)
    mkdir /mnt/vdb/dir
    for i in $(seq 200); do : >/mnt/vdb/dir/$i; done
    insmod causes.ko cause=dir_put path=/mnt/vdb/dir often=146 || wrong "causes.ko"
    echo 1 >/sys/module/causes/parameters/go
    . ./dump.sh
    dump proven
    echo - >/sys/module/causes/parameters/go
    ;;
esac
systemctl restart ebpfwatch || wrong "restart"
[ "$(systemctl show -p NRestarts --value ebpfwatch)" = 0 ] || wrong "it restarted by itself"
systemctl stop ebpfwatch || wrong "stop"
bpftool prog show 2>/dev/null | grep -q 'name on_\|ext4_evict' && wrong "programs are left"
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
. ./purged.sh
