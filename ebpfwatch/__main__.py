"""``python3 -m ebpfwatch`` is the command line."""

from __future__ import annotations

import sys

from ebpfwatch.commands import main

if __name__ == "__main__":
    sys.exit(main())
