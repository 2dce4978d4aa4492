# `ebpfwatch balance` on a module with three habits: it pairs, it gives an inode back once too often in 50 rounds, it opens
# files and never closes them. Each must be told, with the place in the module.
echo x >/mnt/vdb/borrowed
insmod lender.ko path=/mnt/vdb/borrowed || exit 3
parameters=/sys/module/lender/parameters
try() { # $1: the habit
    printf "%s" "$1" >$parameters/habit
    python3 -m ebpfwatch balance lender --modules /payload --seconds 20 >/results/$1 2>&1 &
    balance=$!
    for i in $(seq 300); do
        grep -q 'are watched' /results/$1 && break
        sleep 1
    done
    for i in $(seq 5); do echo 100 >$parameters/work; done
    wait $balance
    echo "exit $?" >>/results/$1
}
said() { grep -q "$2" /results/$1 || wrong "$1: no line '$2' in: $(cat /results/$1)"; }
try pairs
said pairs '^inode: adds up: 1000 taken, 1000 given back'
said pairs '^dentry: adds up: 2000 taken, 2000 given back'
said pairs '^file: adds up: 500 taken, 500 given back'
said pairs '^exit 0'
try extra
said extra '^inode: too many given back: 1000 taken, 1010 given back'
said extra '10 of 10 calls of iput at once_too_often+0x[0-9a-f]* \[lender\] gave back'
said extra '^dentry: adds up'
said extra '^exit 1'
try leak
said leak '^file: not given back: 1000 taken, 500 given back'
said leak '500 references of 500 objects, last taken by filp_open at never_closed+0x[0-9a-f]* \[lender\]'
said leak '^inode: adds up: 1000 taken, 1000 given back'
said leak '^exit 1'
cat /results/pairs /results/extra /results/leak
python3 -m ebpfwatch balance ext4 >/results/ext4 2>&1 && wrong "ext4 is no module here: $(cat /results/ext4)"
dmesg | grep -v 'command line' | grep -i 'oops\|bug:\|warning:' && wrong "the kernel complained"
[ ! -s /results/why ]
