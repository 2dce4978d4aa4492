#!/bin/sh
# completion.sh DIRECTORY: the completions, each where its shell looks for those of packages, below DIRECTORY as
# below /usr/share.
set -eu
script() { # script SHELL PATH
	mkdir -p "$1/$(dirname "$3")"
	python3 -m ebpfwatch completion "$2" >"$1/$3"
}
script "$1" bash bash-completion/completions/ebpfwatch
script "$1" zsh zsh/vendor-completions/_ebpfwatch
script "$1" fish fish/vendor_completions.d/ebpfwatch.fish
