# $package: nothing of it is left.
dpkg --purge "$package" >/results/purge 2>&1 || wrong "the purge"
ls -d /etc/ebpfwatch /var/lib/ebpfwatch /run/ebpfwatch 2>/dev/null && wrong "the purge left something"
[ ! -s /results/why ]
