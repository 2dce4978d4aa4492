# The self-contained image, on a host that has lost its Python and its compiler.
package=ebpfwatch-image
# Where a distribution has them: below the directories that the unit shows to the image.
mkdir -p /usr/src/headers
mount --bind headers /usr/src/headers
ln -sfn /usr/src/headers /lib/modules/$(uname -r)/build
rm -rf /usr/bin/python3* /usr/lib/python3* /usr/lib/*/libbcc* /usr/lib/*/libLLVM* /usr/lib/*/libclang*
dpkg -i ebpfwatch-image_*_arm64.deb >/results/dpkg 2>&1 || wrong "the installation"
systemctl is-active ebpfwatch || wrong "the installation did not start the unit"
journalctl --no-pager -u ebpfwatch >/results/err
. ./proven.sh
systemctl stop ebpfwatch || wrong "stop"
bpftool prog show 2>/dev/null | grep -q 'name on_\|ext4_evict' && wrong "programs are left"
journalctl --no-pager -u ebpfwatch >/results/err
. ./purged.sh
