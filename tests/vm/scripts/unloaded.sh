# The module ext4 goes and comes back; the root file system is no ext4 here. A raw tracepoint holds the module: `rmmod` is
# refused while the daemon runs, and works once it is gone. A kprobe does not: the daemon outlives its hook and says that
# it is silent, and the next start has it again.
if [ -z "$moved" ]; then # the shell itself runs from a disk that has to go
    export moved=yes
    cp -a /payload /run/payload
    umount /state
    cd /run/payload || exit 1
    exec sh ./run.sh >/run/output 2>&1
fi
umount /state
umount /payload /results || { wrong "the payload's and the results' disks are busy"; exit 1; }
mkdir /run/results
mount --bind /run/results /results
keep_journal() { :; }
leave() { umount /mnt/vdb || wrong "$1: ext4 is still mounted"; }
come() { insmod ext4.ko; mount /dev/vdd /mnt/vdb || wrong "ext4 did not come back"; }
watch
leave held
rmmod ext4 && wrong "the module went, though a raw tracepoint holds it"
sleep 10
kill -0 $daemon || wrong "the daemon ended when nothing was mounted any more"
come
wait_alive
stop || wrong "the daemon ended with $?"
leave stopped
rmmod ext4 || wrong "the daemon is gone, and the module is still held"
python3 -m ebpfwatch run --config /tmp/config.yaml >/results/refused 2>&1
[ $? = 69 ] && [ $(wc -l </results/refused) -le 2 ] || wrong "without ext4: $(cat /results/refused)"
come

sed -i 's/  rungs: ""/  rungs: "evict=kprobe unlink=none"/; s/interval_seconds: 300/interval_seconds: 5/' /tmp/config.yaml
start err-kprobe
wait_alive
leave silent
rmmod ext4 || wrong "a kprobe holds the module"
come
await 'hook_alive{hook="evict"} 0.0'
stop || wrong "the daemon whose hook was gone ended with $?"
start err-again
wait_alive
die benign
confirmed
finish
stop
dmesg | grep -v 'command line' | grep -i 'oops\|bug:\|warning:' && wrong "the kernel complained"
umount /results
mount -o sync /dev/vdc /results && cp -a /run/results/. /run/output /results
[ ! -s /results/why ]
