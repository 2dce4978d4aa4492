"""The two commands of README.md in a fresh clone on a fresh Debian: `make run`, and of `make test`
what does not depend on the kernel: style, types and all unit tests.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from tests.install.container import OWN_NUMBERS, run, system

__all__ = ["system"]

_RUN = """\
apt-get -q update
apt-get -q install -y --no-install-recommends make git
cat /etc/debian_version
make run >/root/run 2>&1 &
until grep -q 'ready after' /root/run; do kill -0 $! || { cat /root/run; exit 1; }; sleep 1; done
grep 'ready after' /root/run
.venv/bin/python3 -m ebpfwatch selftest
.venv/bin/python3 -m ebpfwatch report --tests
kill -INT $(pgrep -f 'ebpfwatch run')
wait $! || true
tail -3 /root/run
"""

_TEST = """\
make install-test
make lint unit
"""


def test_the_two_commands_of_the_readme(system: Path) -> None:
    """From nothing: installed by make, ready, a self-test found; then every unit test."""
    began = time.monotonic()
    said = run(system, _RUN + OWN_NUMBERS + _TEST, 60)
    print(f"{time.monotonic() - began:.0f} s from nothing through make run and make lint unit")
    print("\n".join(re.findall(r"(?m)^[^+].*(?:ready after|passed).*$", said)))
    assert "double_free" in said.partition("tail -3")[0]
    assert re.search(r"(?m)^=+ \d+ passed", said), said[-3000:]
