"""Which modules to ask about, by what is known of each: findings, the kernel's log, its own file.

Two things are kept apart: what speaks against a module, and what it could do at all.  Being able to
do it is no evidence, and every module is told with what would clear it.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ebpfwatch.triage import kofile
from ebpfwatch.triage.summary import Repeated, Triage

__all__ = ["RANKS", "Loaded", "Ranking", "Suspect", "rank"]

#: Taints that say the code is not this kernel's own (kernel/panic.c, taint_flags): proprietary,
#: out of tree, loaded by force, a live patch.
_FOREIGN = "POFK"
_NAMED = re.compile(r"module ([\w-]+)")
_MOST_LINES = 8
_ANY_FUNCTION = "can change or call any function of the kernel"

#: How much is known against it, the most first, in words.
RANKS = {
    "named": "a finding shows that its code made the wrong call",
    "suspected": "a finding names it; that it did the wrong step is not shown",
    "hidden": "it is loaded and hides from the list of modules",
    "connected": "the kernel's log has its lines, or it on a stack; that alone proves nothing",
    "unread": "nothing against it; what it could do is not known",
    "able": "nothing against it; its file calls functions with which this could be done",
    "unlikely": "nothing against it; its file calls none of the functions with which this is done",
}


@dataclasses.dataclass(frozen=True)
class Loaded:
    """One module in the kernel; ``order`` is 1 for the one that was loaded first.

    ``hidden``: /sys/module has it, and /proc/modules does not.  What the kernel does not tell is
    "".
    """

    name: str
    taints: str = ""
    order: int = 0
    version: str = ""
    srcversion: str = ""
    build_id: str = ""
    hidden: bool = False


@dataclasses.dataclass
class Suspect:
    """One module with all that is known of it; ``rank`` is a key of ``RANKS``.

    ``same`` tells whether the file is what was loaded: None where neither has a mark to compare.
    """

    loaded: Loaded
    rank: str = "unread"
    reasons: list[str] = dataclasses.field(default_factory=list)
    calls: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    info: dict[str, str] = dataclasses.field(default_factory=dict)
    file: str = ""
    same: bool | None = None
    clears: str = ""


@dataclasses.dataclass
class Ranking:
    """The suspects, the most evidence first; ``notes`` says what could not be looked at."""

    suspects: list[Suspect]
    loaded: int
    notes: list[str]


@dataclasses.dataclass
class _File:
    """What one module's file says."""

    path: str
    read: bool
    calls: dict[str, list[str]]
    info: dict[str, str]
    build_id: str
    lines: list[Repeated]
    symbols: bool

    def same(self, loaded: Loaded) -> bool | None:
        """Whether it is what was loaded: by the linker's build id, else by srcversion."""
        if loaded.build_id and self.build_id:
            return loaded.build_id == self.build_id
        srcversion = self.info.get("srcversion", "")
        if loaded.srcversion and srcversion:
            return loaded.srcversion == srcversion
        return None


def rank(
    loaded: Sequence[Loaded],
    directory: Path | None,
    triages: Iterable[Triage],
    findings: Iterable[Mapping[str, Any]],
    seconds: float = 60.0,
) -> Ranking:
    """All modules that are not of the kernel's own tree, that are not what their file is, or that a
    finding names; ``directory`` has the modules' files, ``triages`` are the boots of the log.
    """
    triages = list(triages)
    lines = [line for triage in triages for line in triage.repeated[:_MOST_LINES]]
    on_stacks = {name for triage in triages for name in triage.at_work}
    named = _findings(findings)
    notes: list[str] = []
    files = _files(loaded, directory, lines, notes, time.monotonic() + seconds)
    exchanged = _exchanged(loaded, files, notes)
    by_name = {module.name: module for module in loaded}
    chosen = [
        module
        for module in loaded
        if set(module.taints) & set(_FOREIGN)
        or module.hidden
        or module.name in named
        or module.name in exchanged
    ]
    gone = [Loaded(name) for name in named if name not in by_name]
    suspects = [
        _suspect(module, files.get(module.name), named.get(module.name, []), on_stacks)
        for module in [*chosen, *gone]
    ]
    for suspect in suspects:
        if suspect.loaded.name not in by_name:
            suspect.reasons.append("it is not loaded now: it was unloaded, or this is another boot")
        for line in _prints(files.get(suspect.loaded.name)):
            others = [
                name
                for name, file in files.items()
                if name != suspect.loaded.name and line.text in {one.text for one in file.lines}
            ]
            also = f"; the same text is in {', '.join(others[:3])}" if others else ""
            suspect.reasons.append(
                f'its file has the text of "{line.text}" ({line.count} times){also}'
            )
    keys = list(RANKS)
    suspects.sort(key=lambda one: (keys.index(one.rank), -_weight(one.calls), one.loaded.name))
    return Ranking(suspects, sum(not module.hidden for module in loaded), notes)


def _weight(calls: Mapping[str, Sequence[str]]) -> int:
    """What ends objects counts before what only takes references."""
    order = list(kofile.CALLS)
    return sum(1 if "takes" in order[order.index(meaning)] else 2 for meaning in calls)


def _findings(findings: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[bool, str]]]:
    """Of each module that a finding names: whether it is shown, and the finding in words."""
    named: dict[str, list[tuple[bool, str]]] = {}
    for body in findings:
        accused = body.get("responsible")
        if body.get("test") or not isinstance(accused, dict):
            continue
        found = _NAMED.match(str(accused.get("who", "")))
        if found is None:
            continue
        shown = accused.get("strength") == "shown"
        words = f"{body.get('id')} ({body.get('verdict')}, {body.get('confidence')})"
        named.setdefault(found.group(1).replace("-", "_"), []).append((shown, words))
    return named


def _files(
    loaded: Sequence[Loaded],
    directory: Path | None,
    lines: Sequence[Repeated],
    notes: list[str],
    deadline: float,
) -> dict[str, _File]:
    """The files of what is loaded, foreign modules first, as long as there is time."""
    if directory is None:
        notes.append("there is no directory with the files of the modules: give --modules DIR")
        return {}
    paths: dict[str, list[Path]] = {}
    for path in kofile.walk(directory):
        paths.setdefault(kofile.named(path), []).append(path)
    if not paths:
        notes.append(f"no files of modules below {directory}")
    ordered = sorted(loaded, key=lambda module: not set(module.taints) & set(_FOREIGN))
    wanted = [module for module in ordered if module.name in paths]
    files: dict[str, _File] = {}
    for done, module in enumerate(wanted):
        if time.monotonic() > deadline:
            notes.append(f"the time was over after {done} of {len(wanted)} modules' files")
            break
        # Several files of one name: the one that is loaded, if one of them can be told to be it.
        found = [_file(path, lines) for path in paths[module.name][:8]]
        files[module.name] = min(found, key=lambda file: (not file.same(module), not file.read))
    return files


def _file(path: Path, lines: Sequence[Repeated]) -> _File:
    data = kofile.contents(path)
    if data is None:
        return _File(str(path), False, {}, {}, "", [], False)
    printed = [line for line in lines if kofile.prints(data, line.text)]
    return _File(
        str(path),
        True,
        kofile.calls(data),
        kofile.modinfo(data),
        kofile.build_id(data),
        printed,
        kofile.has_symbols(data),
    )


def _exchanged(loaded: Sequence[Loaded], files: Mapping[str, _File], notes: list[str]) -> set[str]:
    """The modules of the kernel's own tree that are not what their file is.

    Where most differ, the kernel's package was upgraded without a reboot, and none of them says
    anything.
    """
    told = [
        (module, files[module.name].same(module))
        for module in loaded
        if module.name in files and not set(module.taints) & set(_FOREIGN)
    ]
    compared = [(module, same) for module, same in told if same is not None]
    differ = {module.name for module, same in compared if not same}
    if len(differ) > 2 and len(differ) * 2 > len(compared):
        notes.append(
            f"{len(differ)} of {len(compared)} modules of the kernel's own tree are not what is on"
            " disk: its package was most likely exchanged since the boot, so none of them is listed"
        )
        return set()
    return differ


def _prints(file: _File | None) -> list[Repeated]:
    return file.lines if file is not None else []


def _suspect(
    module: Loaded, file: _File | None, named: Sequence[tuple[bool, str]], on_stacks: set[str]
) -> Suspect:
    suspect = Suspect(module)
    if file is not None:
        suspect.file, suspect.same = file.path, file.same(module)
        suspect.info, suspect.calls = file.info, file.calls
    suspect.reasons = [
        f"the finding {words} " + ("shows that its code did it" if shown else "names it")
        for shown, words in named[:5]
    ]
    if len(named) > 5:
        suspect.reasons.append(f"{len(named) - 5} more findings name it")
    if module.hidden:
        suspect.reasons.append("/sys/module has it as live, and /proc/modules does not, twice")
    if module.name in on_stacks:
        suspect.reasons.append("its code is on a stack in the kernel's log")
    known = file is not None and file.read and file.symbols and suspect.same is not False
    if not known:
        suspect.reasons.append(_why_not_known(file, suspect.same))
    connected = module.name in on_stacks or bool(_prints(file))
    if named:
        suspect.rank = "named" if any(shown for shown, _ in named) else "suspected"
    elif module.hidden:
        suspect.rank = "hidden"
    elif connected:
        suspect.rank = "connected"
    elif known:
        suspect.rank = "able" if suspect.calls else "unlikely"
    suspect.clears = _clears(suspect, known)
    return suspect


def _why_not_known(file: _File | None, same: bool | None) -> str:
    if file is None:
        return "there is no file of it"
    if not file.read:
        return "its file could not be read"
    if same is False:
        return "its file is not what was loaded (the build id or srcversion differs)"
    return "its file's table of symbols could not be read"


def _clears(suspect: Suspect, known: bool) -> str:
    without = "the same work without it, for longer than it ever took, and it happens all the same"
    if suspect.rank in ("named", "suspected", "hidden", "connected"):
        return without
    if not known:
        return f"its own file (--modules DIR), if it calls none of these functions; or {without}"
    if _ANY_FUNCTION in suspect.calls:
        return f"not its file, for it can reach every function; {without}"
    if suspect.calls:
        return f"its source, if each of these calls has its counterpart; or {without}"
    return "its file does, but for a write through a wrong pointer of its own"
