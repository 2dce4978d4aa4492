"""``python3 -m ebpfwatch`` is the command line.

Only this file and ``triage`` can be read by Python 3.7: there every other command ends with one
line that says so, not with a SyntaxError.
"""

from __future__ import annotations

import sys

_NEEDED = (3, 9)


def _too_old() -> str:
    """Why this Python cannot run the command; "" if it can."""
    if sys.version_info >= _NEEDED or sys.argv[1:2] == ["triage"]:
        return ""
    found = ".".join(map(str, sys.version_info[:2]))
    return (
        f"ebpfwatch: this is Python {found}, and 3.9 or later is needed; use the self-contained"
        " image (docs/install.md); only `triage` runs here"
    )


if __name__ == "__main__":
    if _too_old():
        print(_too_old(), file=sys.stderr)
        sys.exit(69)
    from ebpfwatch.commands import main

    sys.exit(main())
