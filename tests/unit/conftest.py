"""For all unit tests: Hypothesis must not measure the machine's load."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile("ebpfwatch", deadline=None)
hypothesis.settings.load_profile("ebpfwatch")
