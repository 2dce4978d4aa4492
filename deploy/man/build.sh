#!/bin/sh
# build.sh DIRECTORY VERSION: ebpfwatch(8) and a page a command, made by help2man from --help, and
# ebpfwatch.yaml(5), made from config.example.yaml; so none can drift from what it describes.
set -eu
out=$1 version=$2 here=$(dirname "$0")
mkdir -p "$out"
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
export COLUMNS=500 # man breaks the lines, not argparse

page() { # page NAME WHAT [COMMAND]
	# What argparse writes in a way that help2man does not know: the usage, and names too long for their column.
	cat >"$tools/$1" <<-PROGRAM
		#!/bin/sh
		python3 -m ebpfwatch ${3:-} "\$@" |
			sed -E -e '1s/^u/U/' -e '/^    ?[a-z-]+\$/{N;s/\n +/  /}'
	PROGRAM
	chmod +x "$tools/$1"
	help2man --section 8 --no-info --version-string "$version" --source "ebpfwatch $version" \
		--manual 'System Administration' --name "$2" --output "$out/$1.8" \
		${3:+--include "$here/command.h2m"} --opt-include "$here/$1.h2m" "$tools/$1"
}

page ebpfwatch 'watch the life of ext4 inodes in the kernel'
python3 -c 'from ebpfwatch.commands import COMMANDS
for item in COMMANDS.items(): print(*item, sep="\t")' |
	while IFS="$(printf '\t')" read -r name what; do
		page "ebpfwatch-$name" "$what" "$name"
	done

sed 's/\\/\\e/g; s/-/\\-/g; s/^[.'\'']/\\\&&/' config.example.yaml |
	sed -e "s/@VERSION@/$version/" -e '/^@CONFIG@$/{r /dev/stdin' -e 'd}' \
		"$here/ebpfwatch.yaml.5.in" >"$out/ebpfwatch.yaml.5"
