# $1: how many dumps of the busy machine. Then, with the load stopped, mistakes of modules/causes.c that leave their object
# in a state that cannot be; a dump before anything else meets them; then reclaim, which usually ends in a panic.
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
    chroot /payload/drgn /usr/bin/env -C /payload python3 -m ebpfwatch audit live --vmlinux vmlinux --json \
        >/results/$1.json 2>/results/$1.err
    echo $? >/results/$1.code
}
live live-busy
pkill -f dumpload.py
sleep 3
cd /mnt/vdb || exit 3
# The module can be loaded once under one name, so each mistake has a copy of it of another name.
number=0
mistake() {
    number=$((number + 1))
    sed "s/causes/cause$number/g" /payload/causes.ko >/tmp/cause$number.ko
    insmod /tmp/cause$number.ko "$@" || exit 3
    echo 1 >/sys/module/cause$number/parameters/go
}
mkdir dir
for i in $(seq 200); do : >dir/$i; done
for name in iput_open iput_idle dput_open freed $(seq -f dput_many%g 40) $(seq -f leaked%g 300); do echo x >$name; done
sync
for name in iput_open dput_open freed dput_many?*; do sleep 10000 9<>$name & done
sleep 2
mistake cause=dir_put path=/mnt/vdb/dir often=146
mistake cause=iput_open path=/mnt/vdb/iput_open
mistake cause=iput_idle path=/mnt/vdb/iput_idle
mistake cause=dput_open path=/mnt/vdb/dput_open
mistake cause=dput_many path=/mnt/vdb/dput_many count=40
mistake cause=files_leaked path=/mnt/vdb/leaked count=300
mistake cause=free_live path=/mnt/vdb/freed
dump mistakes
live live-mistakes
for i in 1 2 3; do echo 2 >/proc/sys/vm/drop_caches; done
ls -lR >/dev/null
sleep 20
