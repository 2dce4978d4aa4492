# Lazy RCU on every CPU: what an idle machine gives it comes back after 10 s, unless somebody waits for it.
grep -q rcu_nocbs=all /proc/cmdline || wrong "the command line is another"
watch
for hook in unlink evict destroy rcu_free any_free; do
    await "hook_alive.hook=.$hook.. 1.0"
done
grep SILENT /results/err && wrong "a hook was called silent"
die benign
confirmed
finish
[ ! -s /results/why ]
