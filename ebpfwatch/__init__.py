"""ebpfwatch follows every ext4 in-memory inode from allocation to free, inside the kernel.

Data flows through the folders in one direction only::

    kernel -> events -> verdicts -> sinks

``kernel`` owns the BPF programs and their file descriptors, ``events`` turns bytes into typed
events, ``verdicts`` judges them and attaches confidence, ``sinks`` tell people.  ``host`` reads
the state of the machine.  Only ``daemon`` knows all of them.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
