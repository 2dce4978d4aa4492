# Somebody else traces the slab's free, by a kretprobe and then by function_graph. Both put a trampoline where the caller's
# address was (return_to_handler, kretprobe_trampoline). With rcu_free=none the slab's hook alone judges each free. Nothing
# may be said of ordinary files.
stop
sed -i 's/  rungs: ""/  rungs: "rcu_free=none"/' /tmp/config.yaml
watch
tracing=/sys/kernel/tracing
[ -e $tracing/kprobe_events ] || mount -t tracefs none $tracing
files() {
    for round in 1 2 3; do
        made 400 /mnt/vdb/f-
        rm /mnt/vdb/f-*
        find /usr -xdev >/dev/null
        echo 2 >/proc/sys/vm/drop_caches
    done
    sleep 3
}
echo 'r:freed kmem_cache_free' >>$tracing/kprobe_events
echo 1 >$tracing/events/kprobes/freed/enable
files
grep freed $tracing/kprobe_profile >/results/profile
awk '$2 < 1000 { exit 1 }' /results/profile && [ -s /results/profile ] || wrong "the kretprobe did not run"
echo 0 >$tracing/events/kprobes/freed/enable
echo '-:freed' >>$tracing/kprobe_events
echo kmem_cache_free >$tracing/set_ftrace_filter
echo function_graph >$tracing/current_tracer
files
head -100 $tracing/trace | grep -q kmem_cache_free || wrong "function_graph did not run"
echo nop >$tracing/current_tracer
finish
python3 sums.py 2000 >/results/figures || wrong "the counters could not be read"
grep WRONG /results/figures >>/results/why
[ ! -s /results/why ]
