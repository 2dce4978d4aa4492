# Sourced: what the machine that emulates this one does when it is asked (tests/vm/asked.py).
asked() { # $1: what, $2: a name; returns when it is done
    echo "guest: $1 $2" >/dev/ttyAMA0
    { set +x; } 2>/dev/null
    until dd if=/dev/vdg bs=4096 count=1 iflag=direct 2>/dev/null | tr -d '\0' | grep -qx "$2"; do sleep 1; done
    set -x
}
# $1: a name; its memory is written to a file, and it stands still meanwhile.
dump() { asked dump $1; }
insmod qemu_fw_cfg.ko 2>/dev/null # it tells QEMU where the kernel's vmcoreinfo is; 4.19 has it built in
# Work of many kinds: every sort of reference that an audit has to know.
busy() {
    mkdir -p /mnt/vdb/tree /mnt/vdb/over/low /mnt/vdb/over/up /mnt/vdb/over/work /mnt/vdb/over/all /mnt/vdb/looped /mnt/vdb/bound
    for module in loop overlay; do [ ! -e $module.ko ] || insmod $module.ko; done
    truncate -s 32M /mnt/vdb/image /mnt/vdb/swap
    mke2fs -q -t ext4 /mnt/vdb/image && mount -o loop /mnt/vdb/image /mnt/vdb/looped
    dd if=/dev/zero of=/mnt/vdb/swap bs=1M count=32 conv=notrunc 2>/dev/null
    chmod 600 /mnt/vdb/swap && mkswap -q /mnt/vdb/swap && swapon /mnt/vdb/swap
    (cd /mnt/vdb/over && mount -t overlay -o lowerdir=low,upperdir=up,workdir=work overlay all)
    mount --bind /mnt/vdb/tree /mnt/vdb/bound
    unshare -m sleep 100000 &
    python3 dumpload.py /mnt/vdb ${1:-100000} &
}
