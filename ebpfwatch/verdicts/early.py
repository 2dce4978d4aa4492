"""The early warning: three things, each normal when alone, that came together in docs/case.md.

Memory below the high watermark (kswapd at work), a burst of inodes evicted by reclaim, and a
message of the kernel that an inode's or dentry's life, or the slab, is damaged.  Pure: times and
observations go in, at most one warning comes out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from ebpfwatch.host.zoneinfo import Zone

__all__ = ["Early", "EarlyWarning"]

_TOGETHER_SECONDS = 60.0  # pressure and burst: at the same time
_PRECURSOR_SECONDS = 300.0  # the second free may come long after
_LEVELS = ("below min", "between min and low", "between low and high")


@dataclasses.dataclass(frozen=True)
class Early:
    """A warning and its three reasons, each with its age in seconds."""

    reasons: tuple[str, ...]

    @property
    def summary(self) -> str:
        """One line."""
        return "an ext4 inode may be freed twice soon: " + "; ".join(self.reasons)


class EarlyWarning:
    """Remembers the latest of each; times are seconds on the caller's clock, never going back."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, str]] = {}
        self._warned = -float("inf")
        self._broken = -float("inf")

    def pressure(self, now: float, zones: Iterable[Zone]) -> None:
        """Zones whose free memory is below the high watermark."""
        low = [zone for zone in zones if zone.level < len(_LEVELS)]
        if low:
            zone = min(low, key=lambda zone: zone.level)
            self._seen["pressure"] = (
                now,
                f"free memory of node {zone.node} {zone.zone} is {_LEVELS[zone.level]}"
                f" ({zone.free >> 20} MiB)",
            )

    def burst(self, when: float, line: str) -> None:
        """Reclaim evicted many inodes."""
        self._seen["burst"] = (when, line)

    def precursor(self, now: float, line: str) -> None:
        """The kernel's own words."""
        self._seen["precursor"] = (now, f"the kernel said: {line}")

    def broken_rule(self, now: float) -> None:
        """A rule of the VFS was broken: what this warns of has begun."""
        self._broken = now

    def active(self, now: float) -> bool:
        """Whether all three are there, or a rule was broken."""
        return now - self._broken <= _PRECURSOR_SECONDS or self._together(now)

    def _together(self, now: float) -> bool:
        windows = {
            "pressure": _TOGETHER_SECONDS,
            "burst": _TOGETHER_SECONDS,
            "precursor": _PRECURSOR_SECONDS,
        }
        return all(
            name in self._seen and now - self._seen[name][0] <= window
            for name, window in windows.items()
        )

    def judge(self, now: float, again_seconds: float) -> Early | None:
        """The warning, if it is due: at most one in ``again_seconds``."""
        if not self._together(now) or now - self._warned < again_seconds:
            return None
        self._warned = now
        return Early(
            tuple(
                f"{line} ({now - when:.0f} s ago)"
                for when, line in (self._seen[name] for name in ("pressure", "burst", "precursor"))
            )
        )
