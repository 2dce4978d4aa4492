# Where a kprobe sees every slab free, its traps cost the most: work that has nothing to do with ext4 must be seen to
# cost it, take the any_free hook off, and put a reason into the next verdict.
stop
sed -i 's/cpu_percent: 0/cpu_percent: 10/' /tmp/config.yaml
watch
grep 'each free from any slab costs' /results/err || wrong "what a free costs was not measured"
python3 -c 'import os
while True: os.chdir("/")' &
burner=$!
await 'governor_step 1.0'
kill $burner
grep 'hook any_free is off' /results/err || wrong "the log does not say that any_free is off"
die benign
await 'findings_total{.*test="false",verdict="double_free"} 1.0'
grep -l 'the hook any_free is off' /state/state/findings/*.json || wrong "the verdict does not say what was off"
# After a minute below half of the budget. From Linux 5.8 on that takes a capability that is gone by then.
case $(uname -r) in
4.*) back='any_free is on again' ;;
*) back='off until the next start' ;;
esac
for i in 1 2 3 4; do
    grep -q "$back" /results/err && break
    sleep 30
done
grep "$back" /results/err || wrong "the log does not say: $back"
finish
[ ! -s /results/why ]
