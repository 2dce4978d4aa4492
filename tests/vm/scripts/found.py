"""The offsets of the running daemon against those of a BTF file: prints those that differ."""

import sys
from pathlib import Path

from ebpfwatch.loader.btf import Btf
from ebpfwatch.loader.members import OPTIONAL
from ebpfwatch.loader.offsets import from_btf
from ebpfwatch.system.lock import running_daemon

found = running_daemon(Path("/run/ebpfwatch")).offsets
for define, offset in from_btf(Btf(file=sys.argv[1])).items():
    if found.get(define, offset) != offset:
        print(f"{define} is {offset}, found was {found[define]}")
    if define not in found and define in OPTIONAL:
        print(f"{define} is {offset}, and was not found")
