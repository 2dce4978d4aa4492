# What nobody sees who asks processes only: files that a module keeps open, a disk that gives errors, one that is taken away,
# a module that gives back too much or too little. Each must be told, and nothing before it was there.
said() { python3 accounts.py >/results/$1 2>&1; }
line() { grep -q "$2" /results/$1 || wrong "$1: no line '$2' in: $(cat /results/$1)"; }

mkdir /tmp/files /mnt/sick
for i in $(seq 2000); do : >/tmp/files/$i; done
[ ! -e loop.ko ] || insmod loop.ko
truncate -s 64M /tmp/image
mke2fs -q -F -t ext4 -e remount-ro /tmp/image
# Direct, or what lies behind the end of its file would be read as zeros (lo_read_simple(), drivers/block/loop.c).
loop=$(losetup -f --show --direct-io=on /tmp/image)
mount $loop /mnt/sick || exit 3
for i in $(seq 50); do mkdir /mnt/sick/$i; done
umount /mnt/sick # or its blocks would still be in memory
mount $loop /mnt/sick || exit 3
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
line leaked '^WARN files without a process: \(1[5-9]\|20\)[0-9][0-9] to 2[0-9]* of '
kill $process

# What lies behind the end of its file is an error now (lo_complete_rq(), the same file).
truncate -s 0 /tmp/image
echo 3 >/proc/sys/vm/drop_caches
for i in $(seq 50); do : >/mnt/sick/$i/file; done
sync
grep loop0 /proc/self/mountinfo
said sick
line sick '^FAIL /mnt/sick errors: [1-9]'
line sick '^\(FAIL /mnt/sick device: ext4 has made itself\|WARN /mnt/sick device: [1-9][0-9]* messages\)'
line sick '^OK /mnt/vdb device: '
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

# As device_del of the machine that emulates it would do; the filesystem stays mounted.
device=$(basename $(readlink -f /sys/block/vdd/device))
echo $device >/sys/bus/virtio/drivers/virtio_blk/unbind
sleep 2
said gone
line gone '^FAIL /mnt/vdb device: 254:48 is gone'
line gone '^OK / device: '
cat /results/before /results/leaked /results/sick /results/pairs /results/wrong /results/gone
dmesg | grep -v 'command line' | grep -i 'oops\|bug:' && wrong "the kernel complained"
[ ! -s /results/why ]
