# $1: how many dumps of the busy machine. Then, with the load stopped, mistakes; a dump before anything else meets them; then
# reclaim, which usually ends in a panic.
. ./dump.sh
busy
sleep 30
for number in $(seq $1); do
    sleep $((number * 2))
    dump healthy$number
done
# The living kernel, read by a Debian that has drgn: while it is busy, and after the mistakes.
live() {
    [ -e /payload/drgn ] || return 0
    for place in proc payload dev; do
        mountpoint -q /payload/drgn/$place || mount --bind /$place /payload/drgn/$place
    done
    symbols=
    [ ! -e /payload/vmlinux ] || symbols="--vmlinux vmlinux"
    chroot /payload/drgn /usr/bin/env -C /payload python3 -m ebpfwatch audit live $symbols --json \
        >/results/$1.json 2>/results/$1.err
    echo $? >/results/$1.code
}
live live-busy
pkill -f dumpload.py
sleep 3
. ./mistakes.sh
dump mistakes
live live-mistakes
for i in 1 2 3; do echo 2 >/proc/sys/vm/drop_caches; done
ls -lR >/dev/null
sleep 20
# Some kernels survive that: the dump of a dead machine is made in any case.
echo c >/proc/sysrq-trigger
