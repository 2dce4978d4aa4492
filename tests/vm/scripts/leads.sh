# $1: how often the crime is committed that harms nothing, each time by a module loaded anew.
watch
for i in $(seq $1); do
    echo x >/mnt/vdb/victim
    arm twice
    # The module learns where an inode lies in its object from an innocent one's end; the daemon hears of the module.
    : >/mnt/vdb/other
    rm /mnt/vdb/other
    sleep 12
    rm /mnt/vdb/victim
    sleep 5
    rmmod crime || wrong "rmmod"
done
finish
kill -0 $daemon || wrong "the daemon is gone"
[ ! -s /results/why ]
