# hooks.any_free: auto, where it is a kprobe: no slab free traps until there is a reason, and log and verdicts say what is
# not seen; then a free by another module is found, and the verdict says since when such frees are seen.
stop
unseen='frees by foreign code are not seen'
sed -i 's/any_free: always/any_free: auto/' /tmp/config.yaml
watch
grep "until then $unseen" /results/err || wrong "the log does not say what is not seen"
grep 'each free from any slab costs' /results/err || wrong "what a free costs was not measured"
python3 -m ebpfwatch check --config /tmp/config.yaml --all >/results/check
tr -s ' \n' '  ' </results/check | grep -q "$unseen" || wrong "check does not say what is not seen"
python3 -c 'import os
for i in range(20000): os.chdir("/")'
sleep 2
[ "$(metric ebpfwatch_trapped_frees_total)" = 0.0 ] || wrong "slab frees trapped before there was a reason"
python3 -m ebpfwatch selftest --timeout 120 || wrong "the self-test"
grep -l "the hook any_free waits for a reason to be attached: $unseen" /state/state/findings/*.json ||
    wrong "the verdict does not say what is not seen"
kill -USR2 $daemon
await 'hook_alive.hook=.any_free.. 1.0'
grep 'armed for 30 minutes, because somebody asked for it' /results/err || wrong "the log does not say that it is armed"
die foreign
await 'findings_total{.*test="false",verdict="foreign_free"} 1.0'
grep -l 'the hook any_free has been attached since' /state/state/findings/*.json ||
    wrong "the verdict does not say since when any_free is attached"
finish
[ ! -s /results/why ]
