"""``python3 -m ebpfwatch.triage FILE...``: the command alone, which is what `make triage` packs."""

from __future__ import annotations

import sys

from ebpfwatch.commands import main

if __name__ == "__main__":
    sys.exit(main(["triage", *sys.argv[1:]]))
