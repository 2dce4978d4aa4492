# What nobody sees who asks processes only: files that a module keeps open, a disk that gives errors, one that is taken away,
# a module that gives back too much or too little. Each must be told, and nothing before it was there.
said() { python3 accounts.py >/results/$1 2>&1; }
line() { grep -q "$2" /results/$1 || wrong "$1: no line '$2' in: $(cat /results/$1)"; }

mkdir /tmp/files /mnt/sick
made 2000 /tmp/files/
[ ! -e loop.ko ] || insmod loop.ko
mkdir /tmp/below
mount -t tmpfs -o size=24M none /tmp/below
truncate -s 64M /tmp/below/image
mke2fs -q -F -t ext4 -e remount-ro /tmp/below/image
mount -o loop /tmp/below/image /mnt/sick || exit 3
said before
line before '^OK files without a process: '
line before '^OK /mnt/sick device: '
line before '^OK /mnt/vdb device: '

insmod causes.ko path=/tmp/files/ cause=files_leaked count=2000 || exit 3
echo 1 >/sys/module/causes/parameters/go
python3 -c 'import time; files = [open("/dev/null") for _ in range(1000)]; time.sleep(600)' &
process=$!
sleep 10
said leaked
line leaked '^WARN files without a process: \(1[5-9]\|20\)[0-9][0-9] to [23][0-9]* of '
kill $process

# Its disk takes no more data; then ext4 meets an error, by the kernel's own switch.
dd if=/dev/zero of=/tmp/below/rest bs=1M 2>/dev/null
dd if=/dev/urandom of=/mnt/sick/data bs=1M count=20 conv=fsync
said sick
line sick '^WARN /mnt/sick device: [1-9][0-9]* messages of its errors'
line sick '^OK /mnt/vdb device: '
echo accounts.sh >/sys/fs/ext4/loop0/trigger_fs_error
grep loop0 /proc/self/mountinfo
said read-only
line read-only '^FAIL /mnt/sick errors: [1-9]'
# Between Linux 6.12 and 6.15 mountinfo does not show it.
case $(uname -r) in
4.19* | 5.*) line read-only '^FAIL /mnt/sick device: ext4 has made itself read-only' ;;
esac
umount /mnt/sick

echo x >/mnt/vdb/borrowed
insmod lender.ko path=/mnt/vdb/borrowed || exit 3
parameters=/sys/module/lender/parameters
balance() { # $1: the habit
    printf "%s" "$1" >$parameters/habit
    python3 -m ebpfwatch balance lender --modules /payload --seconds 30 >/results/$1 2>&1 &
    balance=$!
    for i in $(seq 600); do
        grep -q 'are watched' /results/$1 && break
        kill -0 $balance || break
        sleep 1
    done
    for i in $(seq 5); do echo 100 >$parameters/work; done
    wait $balance
    echo "exit $?" >>/results/$1
}
balance pairs
line pairs '^inode: adds up: 1000 taken, 1000 given back'
line pairs '^dentry: adds up: 2000 taken, 2000 given back'
line pairs '^file: adds up: 500 taken, 500 given back'
line pairs '^exit 0'
balance wrong
line wrong '^inode: too many given back: 1000 taken, 1010 given back'
line wrong '10 of 10 calls of iput at once_too_often+0x[0-9a-f]* \[lender\] gave back'
line wrong '^dentry: adds up: 2000 taken, 2000 given back'
line wrong '^file: not given back: 1000 taken, 500 given back'
line wrong '500 references of 500 objects, last taken by filp_open at never_closed+0x[0-9a-f]* \[lender\]'
line wrong '^exit 1'

# A disk behind device-mapper: each write to it fails, then everything does.
mapper() { LD_LIBRARY_PATH=/payload/dmsetup/usr/lib/aarch64-linux-gnu /payload/dmsetup/usr/sbin/dmsetup "$@"; }
for module in dm-mod dm-flakey; do [ ! -e $module.ko ] || insmod $module.ko; done
mkdir /mnt/ill /mnt/pulled
truncate -s 64M /tmp/mapped /tmp/unused
# loop0 is known for the errors of the disk above.
losetup -f /tmp/unused
loop=$(losetup -f --show /tmp/mapped)
mke2fs -q -t ext4 $loop
mapper create --noudevsync --noudevrules ill --table "0 131072 linear $loop 0" || exit 3
# The kernel's own node: nobody makes /dev/mapper without udev.
mount "/dev/dm-$(mapper info -c --noheadings -o minor ill)" /mnt/ill || exit 3
becomes() { mapper load ill --table "$1" && mapper suspend --noflush --nolockfs ill && mapper resume --noudevsync --noudevrules ill; }
write() { dd if=/dev/urandom of=/mnt/ill/$1 bs=1M count=4 conv=fsync; }
write healthy
said mapped
line mapped '^OK /mnt/ill device: '
line mapped '^OK /mnt/ill disk: dm-'
if [ -e dm-flakey.ko ]; then
    becomes "0 131072 flakey $loop 0 0 1000 1 error_writes" || exit 3
    write flakey && wrong "a write to a disk that takes none"
    said flakey
    line flakey '^\(WARN\|FAIL\) /mnt/ill device: '
    cat /results/flakey
fi
becomes "0 131072 error" || exit 3
write error && wrong "a write to a disk that takes none"
said error
line error '^\(WARN\|FAIL\) /mnt/ill device: '
line error '^OK / device: '
umount /mnt/ill
mapper remove --noudevsync --noudevrules ill

# A disk is pulled while its filesystem is mounted.
. ./dump.sh
mke2fs -q -t ext4 /dev/vdh && mount /dev/vdh /mnt/pulled || exit 3
said there
line there '^OK /mnt/pulled device: '
asked pull pulled
for i in $(seq 60); do
    [ -e /sys/block/vdh ] || break
    sleep 1
done
said gone
line gone '^FAIL /mnt/pulled device: [0-9]*:112 is gone'
line gone '^OK / device: '
cat /results/before /results/leaked /results/sick /results/read-only /results/pairs /results/wrong /results/mapped /results/error /results/gone
dmesg | grep -v 'command line' | grep -i 'oops\|bug:' && wrong "the kernel complained"
[ ! -s /results/why ]
