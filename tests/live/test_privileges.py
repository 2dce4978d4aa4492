"""Capabilities of a real process, as /proc tells them."""

from __future__ import annotations

import subprocess
import sys

from ebpfwatch.system.privileges import CAPABILITIES
from tests.live.harness import ROOT

_SCRIPT = """
import re
from ebpfwatch.system import privileges

def show(when):
    status = open("/proc/thread-self/status").read()
    print(when, *re.findall(r"Cap(?:Prm|Eff):\\s+(\\w+)", status))

kept = privileges.drop(lambda: None, dormant=("sys_admin",))
print("kept", *kept)
show("dormant")
with privileges.raised("sys_admin"):
    show("raised")
show("dormant")
with privileges.raised("bpf"):
    show("gone")
"""


def test_a_dormant_capability_is_in_effect_only_while_it_is_raised() -> None:
    """CAP_SYS_ADMIN of kernels before 5.8, and what was given up cannot be raised."""
    ran = subprocess.run(
        [sys.executable, "-c", _SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert lines[0][0] == "kept" and lines[0][-1] == "sys_admin" and "bpf" not in lines[0]
    small = sum(1 << CAPABILITIES[name] for name in lines[0][1:-1])
    whole = small | 1 << CAPABILITIES["sys_admin"]
    assert [(when, int(prm, 16), int(eff, 16)) for when, prm, eff in lines[1:]] == [
        ("dormant", whole, small),
        ("raised", whole, whole),
        ("dormant", whole, small),
        ("gone", whole, small),
    ]
