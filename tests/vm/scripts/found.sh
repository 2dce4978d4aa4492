# No BTF, no headers: the offsets are found in files of the loader's own. What a kernel with BTF says is kept to compare.
cp /payload/kernel.btf /tmp/kernel.btf 2>/dev/null || cp /sys/kernel/btf/vmlinux /tmp/kernel.btf
[ ! -d /sys/kernel/btf ] || mount -t tmpfs none /sys/kernel/btf
rm -f /lib/modules/$(uname -r)/build
python3 -m ebpfwatch check --all >/results/check
code=$?
[ $code -le 1 ] || wrong "check: $code"
grep -q 'offsets' /results/check || wrong "check does not say where the offsets are from"
watch
grep -q 'offsets: from what files of ours show' /results/err || wrong "the log does not say that they were found"
PYTHONPATH=/payload python3 /payload/found.py /tmp/kernel.btf >>/results/why
die benign
confirmed
finish
kill $daemon
wait $daemon
[ ! -s /results/why ]
