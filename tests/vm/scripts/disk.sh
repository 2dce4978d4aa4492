# Two disks of a guest fail, each in its own way: one gives errors, one is taken away. `check` and the daemon say which,
# and of the others nothing.
[ ! -e loop.ko ] || insmod loop.ko
truncate -s 64M /tmp/image
mke2fs -q -F -t ext4 -e remount-ro /tmp/image
mkdir -p /mnt/sick
mount -o loop /tmp/image /mnt/sick || exit 3
for i in $(seq 50); do mkdir /mnt/sick/$i; done
umount /mnt/sick # or its blocks would still be in memory
mount -o loop /tmp/image /mnt/sick || exit 3
watch
asked() { python3 -m ebpfwatch check --all >/results/$1 2>&1; grep -A1 "$2" /results/$1; }
asked before '/mnt/sick device: ' | grep -q '^  OK ' || wrong "before: $(grep sick /results/before)"
await 'filesystem_turned_read_only{.*mountpoint="/mnt/sick"} 0.0'
# What lies behind the end of its file a loop device answers with an error (lo_complete_rq(), drivers/block/loop.c).
truncate -s 0 /tmp/image
echo 3 >/proc/sys/vm/drop_caches
for i in $(seq 50); do : >/mnt/sick/$i/file; done
sync
sleep 8
asked error '/mnt/sick ' | grep 'FAIL' || wrong "after errors: $(grep sick /results/error)"
await 'disk_error_messages{.*mountpoint="/mnt/sick"} [1-9]'
await 'ext4_errors{device="loop0"} [1-9]'
grep loop0 /proc/self/mountinfo >/results/mountinfo
case $(uname -r) in
4.19*) await 'filesystem_turned_read_only{.*mountpoint="/mnt/sick"} 1.0' ;;
esac
umount /mnt/sick
# The disk is taken away, its filesystem stays mounted: as device_del of the machine that emulates it would do.
: >/mnt/vdb/held
sync
device=$(basename $(readlink -f /sys/block/vdd/device))
echo $device >/sys/bus/virtio/drivers/virtio_blk/unbind
sleep 8
asked gone '/mnt/vdb device: ' | grep -q 'FAIL.*is gone' || wrong "after the unbind: $(grep vdb /results/gone)"
await 'filesystem_device_gone{.*mountpoint="/mnt/vdb"} 1.0'
asked rest ' / device: ' | grep -q '^  OK ' || wrong "the root's disk is accused: $(grep ' / ' /results/rest)"
curl -s localhost:9866/metrics >/results/metrics
dmesg >/results/dmesg
[ ! -s /results/why ]
