watch
echo x >/mnt/vdb/victim
sync
arm shrink
for i in 1 2 3; do echo 3 >/proc/sys/vm/drop_caches; done
finish
