"""One hook as the loader left it: the record that loader, daemon, `check` and sinks share."""

from __future__ import annotations

import dataclasses

__all__ = ["LoadedHook"]


@dataclasses.dataclass(frozen=True)
class LoadedHook:
    """One role of the ladder, and the rung that it got.

    ``kind`` and ``target`` are the rung's ("kprobe", "ext4_evict_inode"), empty where the role has
    none; ``functions`` are the names of its programs in probes/.  ``shared``: they are those of
    ``any_free``, which sees this role's event, too.  ``reason`` says why the role is not on a
    better rung, or why it has none; ``costs`` is what the rung costs ("runs on every slab free").
    ``left_out`` names the rung that would hold where the configuration wants none.  ``armed``: it
    is loaded, and attached only while there is a reason (``daemon.arming``).
    """

    role: str
    kind: str = ""
    target: str = ""
    functions: tuple[str, ...] = ()
    shared: bool = False
    reason: str = ""
    costs: str = ""
    left_out: str = ""
    armed: bool = False

    @property
    def has_rung(self) -> bool:
        """Whether the role can be filled on this kernel, and the configuration wants it."""
        return bool(self.kind)

    @property
    def name(self) -> str:
        """The rung for people: kind and target; "" where there is none."""
        if not self.kind:
            return ""
        return f"{self.kind} {self.target}" + (" (shared with any_free)" if self.shared else "")

    @property
    def why(self) -> str:
        """Why no better rung, and what this one costs, for people."""
        return "; ".join(filter(None, (self.reason, f"it {self.costs}" if self.costs else "")))
