# actions.crash: at the earliest proof the machine is crashed on purpose, and the next boot says why.
keeps_memory
if [ ! -e /results/first ]; then
    touch /results/first
    sed -i 's/  crash: never/  crash: confirmed/' /tmp/config.yaml
    start err-first
    wait_alive
    timeout 60 python3 -m ebpfwatch selftest >/results/selftest 2>&1 || wrong "the self-test"
    die benign
    sleep 20
    wrong "it was not crashed"
    exit 1
fi
[ ! -e /results/second ] || { wrong "it was crashed twice"; exit 1; }
touch /results/second
cp -r /sys/fs/pstore /results/pstore-files
sed -i 's/  crash: never/  crash: confirmed/' /tmp/config.yaml
watch
for said in 'ended in a kernel panic' 'finding on disk: double_free' 'verdict in the trace buffer: double_free'; do
    grep -qi "$said" /results/err || wrong "the log does not say: $said"
done
grep -q 'crashing this machine for finding' /results/err-first || wrong "it did not say that it crashes the machine"
# Once in 24 hours: a machine that crashes at every boot helps nobody.
die benign
confirmed
await 'actions_total{action="crash",result="skipped"} 1.0'
[ ! -s /results/why ]
