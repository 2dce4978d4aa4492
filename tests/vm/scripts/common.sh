# Sourced by every script: the daemon's configuration, and how to start it and wait for it.
if [ -d headers ]; then
    mkdir -p /lib/modules/$(uname -r)
    ln -sfn /payload/headers /lib/modules/$(uname -r)/build
fi
export PYTHONDONTWRITEBYTECODE=1
# The daemon's state and the journal lie on a disk of their own, with nothing but what they sync themselves: what is
# there after a panic has survived it. The results' disk, which is mounted sync, would prove nothing.
mkdir -p /state
mount /dev/vdf /state
keep_journal() {
    mkdir -p /state/journald /var/log/journal
    mount --bind /state/journald /var/log/journal
    systemctl restart systemd-journald
}
# No governor: what costs a percent of a real CPU costs half of an emulated one, and the any_free hook would go.
sed 's#/var/lib/ebpfwatch#/state/state#; s/cpu_percent: [0-9.]*/cpu_percent: 0/; s/any_free: auto /any_free: always /' config.example.yaml >/tmp/config.yaml
start() {
    python3 -m ebpfwatch run --config /tmp/config.yaml >/results/out 2>/results/$1 &
    daemon=$!
}
# $1 empty files, $2NUMBER$3. Not in a loop of this shell: each traced line waits for a disk that is mounted sync.
made() { seq -f "$2%g$3" $1 | xargs touch; }
wrong() { echo "$*" >>/results/why; }
alive='hook_alive.hook=.rcu_free.. 1.0'
# Untraced, and seldom: each look costs an emulated guest half a second. Limits here are for what never comes: the
# guest's clock runs on while the machine that emulates it is busy with other work.
wait_alive() {
    { set +x; } 2>/dev/null
    for i in $(seq 500); do
        curl -s localhost:9866/metrics | grep -q "$alive" && set -x && return 0
        [ -z "$daemon" ] || kill -0 $daemon || break
        sleep 2
    done
    set -x
    wrong "the hooks were not proven alive within 1000 s, or the daemon ended"
    return 1
}
# $1: a pattern that /metrics must show within 300 s.
await() {
    for i in $(seq 100); do
        curl -s localhost:9866/metrics | grep -q "$1" && return 0
        sleep 3
    done
    wrong "the metrics never said $1"
}
confirmed() { await 'findings_total{confidence="confirmed",test="false",verdict="double_free"} 1.0'; }
# The daemon, its hooks proven; then `finish` when all is done.
watch() { [ -n "$daemon" ] || { keep_journal; start err && wait_alive; }; }
stop() { [ -z "$daemon" ] || { kill $daemon; wait $daemon; daemon=; }; }
finish() {
    sleep 6
    curl -s localhost:9866/metrics >/results/metrics
    dmesg >/results/dmesg
}
arm() { insmod crime.ko path=/mnt/vdb/victim scenario=$1 || exit 3; }
# Its inode dies the ordinary way: what the armed module waits for.
die() {
    echo x >/mnt/vdb/victim
    arm $1
    noted crime
    rm /mnt/vdb/victim
}
# A real culprit is loaded for days: the daemon has noted the module $1 in the record of this boot.
noted() {
    for i in $(seq 60); do
        grep -qs $1 /state/state/boot.json /var/lib/ebpfwatch/boot.json && break
        sleep 2
    done
}
# $1: a pattern that the kernel log must show within 60 s.
logged() {
    for i in $(seq 60); do
        dmesg | grep -q "$1" && return 0
        sleep 1
    done
    return 1
}
metric() { curl -s localhost:9866/metrics | sed -n "s/^$1 //p"; }
# ramoops, where the command line says; a module in Debian's kernels, which has its parameters from there, too.
keeps_memory() {
    if [ -e ramoops.ko ]; then
        insmod reed_solomon.ko
        insmod ramoops.ko $(tr ' ' '\n' </proc/cmdline | sed -n 's/^ramoops\.//p') || wrong "ramoops"
    fi
    mount -t pstore none /sys/fs/pstore 2>/dev/null
    ls /sys/fs/pstore
}
