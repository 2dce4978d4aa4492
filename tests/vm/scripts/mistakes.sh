# Sourced: mistakes of modules/causes.c that leave their object in a state that cannot be (tests/vm/audited.py knows which).
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
