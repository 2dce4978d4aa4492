#!/bin/sh
# supported.sh [OS_RELEASE]: can this system run ebpfwatch? Says in one line why not, before anything is installed.
#
# Debian 11 has libbpf 0.3, which lacks btf__load_vmlinux_btf (libbpf 0.5), and Python before 3.9 lacks what the
# code is written in. `make triage` and the image (docs/install.md) need neither.
set -eu

os_release=${1:-/etc/os-release}
python=${PYTHON:-/usr/bin/python3}

refuse() {
	echo "ebpfwatch: $1; use Debian 12 or 13, or the self-contained image (docs/install.md); \`triage\` runs" \
		"here with Python 3.7 or later: make triage" >&2
	exit 69
}

id='' version=''
if [ -r "$os_release" ]; then
	id=$(sed -n 's/^ID=//p' "$os_release" | tr -d '"')
	version=$(sed -n 's/^VERSION_ID=//p' "$os_release" | tr -d '"')
fi
case $version in
*[!0-9]* | '') ;;
*) [ "$id" != debian ] || [ "$version" -ge 12 ] || refuse "Debian $version is too old: its libbpf cannot read BTF" ;;
esac
command -v apt-get >/dev/null || refuse "this system has no apt-get, so its packages cannot be installed"
if [ -x "$python" ]; then
	"$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' || refuse "$python is older than 3.9"
fi
