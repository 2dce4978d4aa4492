#!/bin/sh
# build.sh DIRECTORY [ARCHITECTURE]: ebpfwatch-image_VERSION_ARCHITECTURE.deb, for arm64 or amd64. The checkout's Debian
# package is installed into a small Debian 12, which becomes one squashfs file (gzip: every kernel with squashfs reads that).
set -eu
cd "$(dirname "$0")/../.."
mkdir -p "$1"
out=$(readlink -f "$1")
arch=${2:-arm64}
work=$(mktemp -d -p /var/tmp)
trap 'rm -rf "$work"' EXIT
if [ "$arch" = arm64 ] && [ "$(dpkg --print-architecture)" != arm64 ]; then
	[ -e /proc/sys/fs/binfmt_misc/register ] || mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
	update-binfmts --enable qemu-aarch64
fi

sh deploy/build-deb.sh "$work"
root=$work/root
packed=${EBPFWATCH_IMAGE_ROOT:-$work/root.tar} # a Debian 12 with what the package depends on
if [ ! -e "$packed" ]; then
	depends=$(dpkg-deb -f "$work"/ebpfwatch_*_all.deb Depends | sed 's/([^)]*)//g; s/:any//g; s/ //g')
	mmdebstrap --architectures="$arch" --variant=minbase --include="$depends" bookworm "$packed"
fi
mkdir "$root" "$work/build"
tar -xpf "$packed" -C "$root" --exclude='./dev/*' --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' \
	--exclude='./usr/share/locale/*' --exclude='./usr/share/i18n/*' --exclude='./var/lib/apt/lists/*' \
	--exclude='./var/cache/apt/*'
mkdir -p "$root/usr/share/man/man5" "$root/usr/share/man/man8" # for dpkg
cp "$work"/ebpfwatch_*_all.deb "$root/package.deb"
# No systemd runs in there: its maintainer scripts only see to the files.
chroot "$root" dpkg -i /package.deb
rm "$root/package.deb" "$root"/etc/ebpfwatch/*
# Where the unit and the command show it parts of the host: a squashfs cannot grow a directory later.
for directory in host usr/lib/modules usr/src var/crash var/lib/ebpfwatch var/log/journal var/lib/systemd/pstore \
	run/ebpfwatch run/log/journal run/systemd/journal; do
	mkdir -p "$root/$directory"
done
touch "$root/run/systemd/notify" "$root/etc/machine-id"
sh deploy/copy-tree.sh "$work/build"
mksquashfs "$root" "$work/build/ebpfwatch.squashfs" -quiet -no-progress -comp gzip -all-root
cp -r deploy/image/debian "$work/build/debian"
cp deploy/debian/copyright "$work/build/debian"
dpkg-deb -x "$work"/ebpfwatch_*_all.deb "$work/package"
mv "$work/package/usr/share/man" "$work/build/manpages"
mkdir "$work/build/completion"
mv "$work/package/usr/share/bash-completion" "$work/package/usr/share/zsh" "$work/package/usr/share/fish" \
	"$work/build/completion"
gunzip -r "$work/build/manpages"
cd "$work/build"
dpkg-buildpackage -us -uc -b "-a$arch" -d >"$work/log" 2>&1 || { tail -40 "$work/log" >&2; exit 1; }
lintian --fail-on error,warning --allow-root "$work"/ebpfwatch-image_*.changes
mv "$work"/ebpfwatch-image_*.deb "$out"
ls -l "$out"/ebpfwatch-image_*.deb
