"""`make rule-costs`: what each rule of docs/contracts.md costs an ordinary run of its hook.

The probes are loaded twice, with a rule and without it, attached nowhere, and both run the same
legal history by turns; the kernel counts their time (kernel.bpf_stats_enabled), and the difference
of the shortest is the rule's.  Where a hook is there for its rule alone, its whole program is the
cost, with the kernel's two looks at the clock.  Fills a column of the table where EBPFWATCH_FIGURES
is set.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Callable
from unittest import mock

from ebpfwatch.catalogue.contracts import RULES, Rule
from ebpfwatch.catalogue.layout import Broken
from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.kernel.libbpf import prog_info
from ebpfwatch.loader import source
from tests.live.workbench import Workbench
from tests.trust.figures import record

_DOCUMENT = Path(__file__).parents[2] / "docs/contracts.md"
_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
_BATCHES, _RUNS = 100, 100

History = Callable[[Workbench], None]


def _life(bench: Workbench) -> None:
    """Handed out, evicted, freed: the memory is always that of a dead inode."""
    bed, learned = bench.bed, bench.session.loaded.learned
    bench.run("kmem_cache_alloc", learned.call_site, bed.object, learned.cache)
    bench.run("ext4_evict_inode", bed.inode_address)
    bench.run("kmem_cache_free", learned.call_site, bed.object, learned.cache)


def _rcu_life(bench: Workbench) -> None:
    """The same, by way of RCU."""
    bed, learned = bench.bed, bench.session.loaded.learned
    bench.run("kmem_cache_alloc", learned.call_site, bed.object, learned.cache)
    bench.run("ext4_evict_inode", bed.inode_address)
    bench.run("ext4_destroy_inode", bed.inode_address, 0)
    bench.run("ext4_free_in_core_inode", bed.inode_address, 0)


def _unlink(bench: Workbench) -> None:
    bench.run("ext4_unlink_enter", bench.bed.inode_address, bench.bed.dentry_address)


@dataclasses.dataclass(frozen=True)
class Part:
    """The C that is taken out, what stands there instead, and a history that runs it: all rules
    of ``verdicts``, but only ``broken`` of them where that is not 0.  ``program`` is what runs it.
    """

    verdicts: tuple[Verdict, ...]
    text: str
    history: History
    program: str
    broken: Broken = Broken(0)
    instead: str = ""

    def has(self, rule: Rule) -> bool:
        """Whether the rule is one of these."""
        return rule.verdict in self.verdicts and (
            not self.broken or bool(rule.broken & self.broken)
        )


_LOCKS = """\
	if (read_unlinked(parent, &directory) && read_unlinked(inode, &victim))
		broken = check_unlink(&directory, &victim, &found);
"""
_PARENT = """\
	if (!is_below(&seen, parent) && !READ(above, seen.parent + OFF_D_INODE) && above != parent)
		broken |= BROKEN_PARENT;
"""

PARTS = (
    Part((Verdict.EVICTED_IN_USE,), "\tcheck_eviction(inode, &why);\n", _life, "ext4_evict_inode"),
    Part(
        (Verdict.UNLOCKED_UNLINK,),
        _LOCKS,
        _unlink,
        "ext4_unlink_enter",
        Broken.DIRECTORY_LOCK | Broken.NO_LINK,
        "\tread_unlinked(parent, &directory);\n",  # its number belongs to the name
    ),
    Part((Verdict.UNLOCKED_UNLINK,), _PARENT, _unlink, "ext4_unlink_enter", Broken.PARENT),
    Part(
        (Verdict.ALLOCATED_WHILE_ALIVE, Verdict.WRITTEN_AFTER_FREE),
        "\tcheck_memory(ctx, object, key ? life : NULL, key);\n",
        _life,
        "kmem_cache_alloc",
    ),
    Part(
        (Verdict.RCU_LISTS_CROSSED,),
        "hook == HOOK_RCU_FREE && crossed(life)",
        _rcu_life,
        "ext4_free_in_core_inode",
        instead="false",
    ),
)

#: Hooks that are there for their rules alone: the program, by the function.
ALONE = {
    (Verdict.DENTRY_KILLED_TWICE, Broken.DEAD): "dentry_kill",
    (Verdict.DENTRY_KILLED_IN_USE, Broken.CHILDREN): "dentry_kill",
    (Verdict.DENTRY_KILLED_TWICE, Broken.QUEUED): "dentry_free",
    (Verdict.DENTRY_KILLED_IN_USE, Broken.ALIAS): "dentry_free",
    (Verdict.PUT_WITHOUT_REFERENCE, Broken.COUNT | Broken.DEAD): "iput",
    (Verdict.PUT_WITHOUT_REFERENCE, Broken.ALIAS | Broken.COUNT): "iput",
    (Verdict.CLOSED_AFTER_DEATH, Broken.COUNT | Broken.DEAD): "fput",
}


def bench_without(text: str, instead: str) -> Workbench:
    """The probes with that text, which is there once, replaced."""
    whole = source.unit

    def cut(directory: Path, name: str) -> str:
        unit = whole(directory, name)
        assert not text or unit.count(text) == 1, (unit.count(text), text)
        return unit.replace(text, instead) if text else unit

    with mock.patch.object(source, "unit", cut):
        bench = Workbench()
    prepare(bench, {})
    return bench


def prepare(bench: Workbench, members: dict[str, int], count: int = 0) -> None:
    """The memory of a dead inode, whose dentry is alive and has no children."""
    bed = bench.bed
    inode = bed.inode
    inode.state, inode.count, inode.published, inode.nlink = bed.dead, count, False, 1
    empty = {"OFF_D_CHILDREN": 0}
    if "OFF_D_SUBDIRS" in bed.offsets:
        empty = {"OFF_D_SUBDIRS": bed.dentry_address + bed.offsets["OFF_D_SUBDIRS"]}
    inode.dentry, inode.members = {"OFF_D_COUNT": 1, **empty}, members
    bench.session.configure(0, ())
    bed.write()


def shortest(program: str, history: History, *benches: Workbench) -> list[float]:
    """Nanoseconds of one run of the program in each, by the kernel's own account, and by turns, so
    that all meet the same machine.
    """
    best = [float("inf")] * len(benches)
    for _ in range(_BATCHES):
        for index, bench in enumerate(benches):
            fd = bench.session.programs[program]
            before = int(prog_info(fd).run_time_ns)
            for _ in range(_RUNS):
                history(bench)
            best[index] = min(best[index], (int(prog_info(fd).run_time_ns) - before) / _RUNS)
    for bench in benches:
        assert not bench.verdicts(), "what was played is not legal"
    return best


@contextlib.contextmanager
def accounted() -> Iterator[None]:
    """The kernel counts the time of each program."""
    before = _STATS.read_text()
    _STATS.write_text("1")
    try:
        yield
    finally:
        _STATS.write_text(before)


def costs() -> dict[Rule, str]:
    """By rule, in words; a rule that no ordinary run reaches has none."""
    whole = bench_without("", "")
    told: dict[Rule, str] = {}
    for part in PARTS:
        cut = bench_without(part.text, part.instead)
        with_it, without = shortest(part.program, part.history, whole, cut)
        cut.close()
        rules = [rule for rule in RULES if part.has(rule)]
        several = f", these {len(rules)} together" if len(rules) > 1 else ""
        told.update(dict.fromkeys(rules, f"{max(0.0, with_it - without):.0f} ns{several}"))
    for (verdict, broken), program in ALONE.items():
        prepare(whole, {"OFF_F_DENTRY": whole.bed.dentry_address} if program == "fput" else {}, 1)
        (took,) = shortest(program, functools.partial(_alone, program), whole)
        (rule,) = (one for one in RULES if (one.verdict, one.broken) == (verdict, broken))
        told[rule] = f"{took:.0f} ns, the whole program"
    whole.close()
    return told


def _alone(program: str, bench: Workbench) -> None:
    bed = bench.bed
    dentry = program.startswith("dentry")
    bench.run(program, bed.dentry_address if dentry else bed.inode_address)


def _rows(text: str, told: dict[Rule, str]) -> Iterator[str]:
    """The page with the last column of its table of rules filled; its rows are in order."""
    rules = iter(RULES)
    for line in text.splitlines(keepends=True):
        cells = line.split("|")
        if len(cells) == 8 and "`" in cells[4]:
            cells[6] = f" {told.get(next(rules), 'nothing: no ordinary run comes there')} "
        yield "|".join(cells)


def _by_program(told: dict[Rule, str]) -> Iterator[tuple[str, list[str]]]:
    """Each figure with the roles whose hook it belongs to."""
    roles: dict[str, list[str]] = {}
    for rule, cost in told.items():
        found = roles.setdefault(cost, [])
        if rule.roles[0].value not in found:
            found.append(rule.roles[0].value)
    yield from roles.items()


def main() -> int:
    """Measure, print, and fill the column where asked."""
    with accounted():
        told = costs()
    lines = ["The last column of the table, in nanoseconds of one run:", ""]
    lines += [f"- {', '.join(words)}: {cost}" for cost, words in _by_program(told)]
    record("rule-costs", "make rule-costs", lines, _DOCUMENT)
    if os.environ.get("EBPFWATCH_FIGURES"):
        _DOCUMENT.write_text("".join(_rows(_DOCUMENT.read_text(), told)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
