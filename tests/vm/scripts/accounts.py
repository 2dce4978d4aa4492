"""Prints what `check` says of open files and disks, one line each: "OK item: value".

`check` itself tries every program first, which takes an emulated guest minutes.
"""

import dataclasses

from ebpfwatch.advice import modules, storage
from ebpfwatch.commands.check import _host
from ebpfwatch.paths import Paths

state = _host(Paths())
for line in (*modules.advise(state), *storage.advise(state)):
    print(f"{line.level.value} {line.item}: {line.value}")
if state.open_files is not None:
    print(dataclasses.asdict(state.open_files))
