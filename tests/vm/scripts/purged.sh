# $package: nothing of it is left but the findings, and the line that it prints removes those.
dpkg --purge "$package" >/results/purge 2>&1 || wrong "the purge"
ls -d /etc/ebpfwatch /run/ebpfwatch 2>/dev/null && wrong "the purge left something"
if [ -e /var/lib/ebpfwatch ]; then
    [ "$(ls /var/lib/ebpfwatch)" = findings ] || wrong "the purge left more than the findings"
    grep -q 'to remove them: rm -r /var/lib/ebpfwatch$' /results/purge || wrong "the purge does not say what it keeps"
fi
[ ! -s /results/why ]
