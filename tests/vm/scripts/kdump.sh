# As Debian's kdump-tools do it: a second kernel waits in memory of its own; the first one panics, and the second, which
# boots the same system, writes the first one's memory to a file (MAKEDUMP_ARGS="-c -d 31", KDUMP_CMDLINE_APPEND).
export LD_LIBRARY_PATH=/payload/tools/usr/lib/aarch64-linux-gnu
if [ -e /proc/vmcore ]; then
    /payload/tools/usr/bin/makedumpfile -c -d 31 /proc/vmcore /tmp/dump || exit
    cp /tmp/dump /results/dump # that disk is mounted sync, and makedumpfile writes little by little
    exit
fi
. ./dump.sh
busy
sleep 20
pkill -f dumpload.py
sleep 3
. ./mistakes.sh
command=$(sed 's/ *crashkernel=[^ ]*//' /proc/cmdline)
/payload/tools/usr/sbin/kexec -p /payload/Image --initrd=/payload/initrd \
    --append="$command nr_cpus=1 reset_devices" || exit 3
[ "$(cat /sys/kernel/kexec_crash_loaded)" = 1 ] || exit 3
cat /proc/sys/kernel/panic_on_oops
sync
echo c >/proc/sysrq-trigger
