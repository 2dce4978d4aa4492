# $1: how often the crime is committed that harms nothing, each time by a module loaded anew.
watch
for i in $(seq $1); do
    echo x >/mnt/vdb/victim
    arm twice
    sleep 12 # the daemon hears of the module
    rm /mnt/vdb/victim
    sleep 5
    rmmod crime || wrong "rmmod"
done
finish
kill -0 $daemon || wrong "the daemon is gone"
[ ! -s /results/why ]
