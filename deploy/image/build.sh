#!/bin/sh
# build.sh DIRECTORY: ebpfwatch-image_VERSION_arm64.deb. The checkout's Debian package is installed into a small
# Debian 12 for arm64, which becomes one squashfs file (gzip: every kernel with squashfs reads that).
set -eu
cd "$(dirname "$0")/../.."
mkdir -p "$1"
out=$(readlink -f "$1")
work=$(mktemp -d -p /var/tmp)
trap 'rm -rf "$work"' EXIT
[ -e /proc/sys/fs/binfmt_misc/register ] || mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
update-binfmts --enable qemu-aarch64

sh deploy/build-deb.sh "$work"
depends=$(dpkg-deb -f "$work"/ebpfwatch_*_all.deb Depends | sed 's/([^)]*)//g; s/:any//g; s/ //g')
mmdebstrap --architectures=arm64 --variant=minbase --include="$depends" \
	--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
	--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/i18n/*' \
	--customize-hook="copy-in $(ls "$work"/ebpfwatch_*_all.deb) /tmp" \
	--customize-hook='chroot "$1" dpkg -i --force-not-root /tmp/ebpfwatch_*.deb' \
	--customize-hook='rm -rf "$1"/tmp/* "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin' \
	--customize-hook='cd "$1" && mkdir -p host usr/lib/modules usr/src var/crash var/lib/ebpfwatch var/log/journal \
		var/lib/systemd/pstore run/ebpfwatch run/log/journal run/systemd/journal' \
	--customize-hook='cd "$1" && rm -rf etc/ebpfwatch/* && touch run/systemd/notify etc/machine-id' \
	bookworm "$work/root.tar"
mkdir "$work/root" "$work/build"
tar -xpf "$work/root.tar" -C "$work/root" --exclude='./dev/*'
git ls-files -z --cached --others --exclude-standard | xargs -0 cp -P --parents -t "$work/build"
mksquashfs "$work/root" "$work/build/ebpfwatch.squashfs" -quiet -no-progress -comp gzip -all-root
cp -r deploy/image/debian "$work/build/debian"
cd "$work/build"
dpkg-buildpackage -us -uc -b -aarm64 -d >"$work/log" 2>&1 || { tail -40 "$work/log" >&2; exit 1; }
lintian --fail-on warning --allow-root "$work"/ebpfwatch-image_*.changes
mv "$work"/ebpfwatch-image_*.deb "$out"
ls -l "$out"/ebpfwatch-image_*.deb
