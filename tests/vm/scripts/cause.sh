# $1: a mistake of modules/causes.c; $2: a variant of it. Then the ordinary work that meets its consequence, or its victims.
watch
cause=$1
# The hooks that are attached only for a while, and on request (docs/contracts.md).
kill -USR2 $daemon
for i in $(seq 60); do grep -q 'armed for' /results/err && break || sleep 1; done
cd /mnt/vdb || exit 3
echo x >victim
sync
# Open for writing: whatever ends the inode contradicts its i_writecount, too.
hold() { for file in "$@"; do sleep 1000 9<>"$file" & holders="$holders $!"; done; }
release() { kill $holders; sleep 2; }
ready() { insmod /payload/causes.ko cause=$cause "$@" || exit 3; noted causes; }
go() { echo 1 >/sys/module/causes/parameters/go; }
many() { made $1 victim; }
on_each_cpu() {
    jobs=
    for cpu in 0 1; do taskset -c $cpu sh -c "cpu=$cpu; $1" & jobs="$jobs $!"; done
    wait $jobs
}
storm() { on_each_cpu "for i in \$(seq ${1:-1500}); do : >new-\$cpu-\$i; done; rm -f new-\$cpu-*"; }
reclaim() { on_each_cpu 'for i in 1 2 3; do echo 2 >/proc/sys/vm/drop_caches; done'; }
case $cause in
dir_put) # each of 200 children holds a reference of its directory: 54 are left
    mkdir dir
    made 200 dir/
    sync
    ready path=/mnt/vdb/dir often=146
    go
    ;;
dirs_put)
    if [ "$2" = shrunk ]; then
        # As in the case: each directory has two children and one reference too few, so the first child's end kills it and
        # the second's kills it again. A call of the shrinker takes 1024 dentries, oldest first: two CPUs end the first and
        # the second children at the same time.
        echo 2 >/proc/sys/vm/drop_caches
        seq -f dir%g 300 | xargs mkdir
        made 300 dir /1
        made 724 between
        made 300 dir /2
        many 1000
        sync
        ready path=/mnt/vdb/dir count=300 often=1
        on_each_cpu "for round in 1 2 3 4 5 6; do for i in \$(seq 100); do : >end-\$cpu-\$i; done; rm end-\$cpu-*; done" &
        sleep 1
        go
    else # the whole chain, step by step
        mkfifo /tmp/to /tmp/from
        python3 /payload/chain.py /mnt/vdb </tmp/to >/tmp/from 2>/results/chain &
        exec 8>/tmp/to 7</tmp/from
        read -r said <&7 # opened
        ready path=/mnt/vdb/dir count=20 often=1
        echo >&8
        read -r said <&7 # deleted
        go
        echo >&8
        wait $!
    fi
    ;;
iput_open | dput_open)
    hold victim
    ready path=/mnt/vdb/victim
    go
    reclaim
    release
    ;;
iput_idle)
    ready path=/mnt/vdb/victim
    go
    ;;
dput_many)
    many 40
    hold victim?*
    ready path=/mnt/vdb/victim count=40
    go
    reclaim
    release
    ;;
dput_deleted)
    exec 9<>victim
    rm victim
    ready path=/proc/self/fd/9
    go
    reclaim
    exec 9<&-
    ;;
iput_stale | write_freed)
    ready path=/mnt/vdb/victim
    rm victim
    sleep 5 # a grace period
    go
    ;;
iput_reused)
    ready path=/mnt/vdb/victim
    rm victim
    sleep 5
    on_each_cpu "for i in \$(seq 3000); do : >new-\$cpu-\$i; done"
    go
    rm new-*
    ;;
unlink_each | unlink_shared)
    many 2000
    ready path=/mnt/vdb/victim count=2000
    go
    sleep 20
    ;;
free_live)
    hold victim
    ready path=/mnt/vdb/victim
    go
    ;;
rcu_twice) # The second run of the rcu_head is the end (docs/contracts.md): inodes must stand behind it at the first time.
    for cpu in 0 1; do made 3000 new-$cpu-; done
    ready count=20
    on_each_cpu "for i in 1 2 3; do rm -f new-\$cpu-\$i*; done" &
    sleep 1
    go
    for i in 1 2 3 4 5; do storm 500; done
    ;;
files_leaked) # no crime: what do those say who are asked?
    many 2000
    ready path=/mnt/vdb/victim count=2000
    go
    cd /payload || exit 3
    python3 accounts.py >/results/check 2>&1 # what check says of files, without trying each program
    grep -q '^WARN files without a process: \(1[5-9]\|20\)[0-9][0-9] to ' /results/check || wrong "$(cat /results/check)"
    python3 -m ebpfwatch cache >/results/cache 2>&1
    ;;
esac
reclaim
ls -lR >/dev/null
storm
reclaim
sleep 5
storm 500
cd /payload || exit 3
finish
