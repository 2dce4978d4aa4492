"""For all tests: how much hypothesis tries, and no deadline of its own.

How long one example takes says nothing on a machine that has other things to do; what must be fast
is measured side by side in tests/bench.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("ebpfwatch", deadline=None)
settings.load_profile("ebpfwatch")
