"""The loader child: chooses hooks, learns, compiles, attaches, hands over, and exits.

The only package that may use bcc and LLVM (some 120 MB).  Nothing of the daemon imports it:
``kernel/pending.py`` starts it as ``python3 -m ebpfwatch.loader.child``.
"""

from __future__ import annotations

from ebpfwatch.system.later import later

later("inspect")
later("urllib.parse", "quote_from_bytes")
