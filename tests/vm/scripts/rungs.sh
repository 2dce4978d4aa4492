# $*: hooks.rungs. A rung that a better one hides on this kernel: proven alive, with a double free seen on it.
stop
sed -i "s/  rungs: \"\"/  rungs: \"$*\"/" /tmp/config.yaml
watch
made 300 /mnt/vdb/f-
rm /mnt/vdb/f-*
find /usr >/dev/null
echo 2 >/proc/sys/vm/drop_caches
case "$*" in
*rcu_free=none*)
    # The benign crime swallows the first free where only this hook sees it. A free by another module is seen by the other.
    die foreign
    await 'findings_total{confidence="confirmed",test="false",verdict="foreign_free"} 1.0'
    found=foreign_free
    ;;
*)
    die benign
    confirmed
    found=double_free
    ;;
esac
finish
grep 'hook_alive{.*} \(0.0\|NaN\)' /results/metrics && wrong "a hook is not alive"
python3 sums.py 300 $found >/results/figures || wrong "the counters could not be read"
grep WRONG /results/figures >>/results/why
[ ! -s /results/why ]
