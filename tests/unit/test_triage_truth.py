"""No sentence of a report may be false: held against the log's own text, whole and damaged."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpfwatch.triage import explain
from ebpfwatch.triage.causes import accused
from ebpfwatch.triage.summary import Triage, read
from tests.unit.test_triage import LOGS, sample

FRAME = r"\+0x[0-9a-f]+/0x[0-9a-f]+"
DAMAGE = (
    r"BUG: (?:KASAN|KFENCE|Bad page|Dentry)|BUG \S+ \((?:Not t|T)ainted.*: (?!Objects)"
    r"|list_(?:add|del) corruption|kernel BUG at (?:mm/slub|fs/inode|fs/dcache)\.c"
    r"|refcount_t: underflow|Double-freed CB|Wrong slab cache"
)


def damaged(log: bytes, seed: int) -> bytes:
    """A copy that lost lines, its head or its tail, or has bytes turned over or lines moved."""
    chaos = random.Random(seed)
    lines = log.splitlines(keepends=True)
    way = seed % 6
    if way == 0:
        lines = [line for line in lines if chaos.random() > 0.3]
    elif way == 1:
        lines = lines[chaos.randrange(len(lines)) :]
    elif way == 2:
        lines = lines[: chaos.randrange(len(lines))]
    elif way == 3:
        chaos.shuffle(lines)
    elif way == 4:
        lines = [line[: chaos.randrange(len(line) + 1)].rstrip() + b"\n" for line in lines]
    data = bytearray(b"".join(lines))
    if way == 5 and data:
        for _ in range(20):
            data[chaos.randrange(len(data))] = chaos.randrange(32, 127)
    return bytes(data)


WHOLE = {sample(path)[1].decode("utf-8", "replace") for path in LOGS}


def copies() -> Iterator[tuple[str, bytes]]:
    """Every sample, and twelve damaged copies of each."""
    for path in LOGS:
        log = sample(path)[1]
        yield path.stem, log
        for seed in range(12):
            yield f"{path.stem}, damaged by {seed}", damaged(log, seed)


def foreign(text: str) -> set[str]:
    """Modules with the flag O or P in any list."""
    return set(re.findall(r"\b([\w-]+)\([A-Z]*[OP][A-Z]*\)", text))


def false_sentences(triage: Triage, text: str) -> list[str]:
    """Sentences of the report that the text contradicts."""
    said = " ".join(explain.tell(triage, "log").split())
    wrong = []

    def claim(words: str, true: bool) -> None:
        if words in said and not true:
            wrong.append(words)

    at_work = set(re.findall(FRAME + r" \[([\w-]+)", text))
    claim("none of them is on a stack", not at_work & {m.name for m in triage.foreign()})
    claim("loaded, none of them out of tree", not foreign(" ".join(triage.modules)))
    # Of a damaged copy "that could be read" is all that can be said.
    whole = text in WHOLE
    claim("a page was damaged.", not whole or not re.search(DAMAGE, text))
    claim("ext4's own RCU callback", "ext4_" in text)
    of_ext4 = "ext4" in text or "ebpfwatch" in text  # whose probes know no other inodes
    claim("THIS BUG", "NOT THIS BUG" in said or of_ext4)
    claim("The kernel freed the memory of an ext4", of_ext4)
    claim("in a softirq", "softirq" in text)
    claim("RCU's softirq", "softirq" in text)
    claim("inside memory reclaim", "shrink_slab" in text or "super_cache_scan" in text)
    claim("by kswapd", "kswapd" in text)
    claim("the log is empty", not text.strip())
    claim("killed the PARENT", "dentry_kill" in text and "shrink_dentry_list" in text)
    claim("hardware complained", bool(re.search(r"Hardware Error|EDAC|mce:|: G.*M", text)))
    claim("no stack came with it", any(not group.report.symbols for group in triage.groups))
    complaint = re.search(r"^(?!user).*kernel BUG at \S+:\d+!$", text, re.M)
    claim("may be no log of a kernel", not complaint)
    claim("may be no kernel log", not complaint)
    claim("RCU freed an object", "rcu" in text or "softirq" in text)
    listed = whole and "Modules linked in:" in text
    claim("does not have the list of", not listed)
    claim("(numbers differ)", bool(triage.repeated))
    claim("memory was short", bool(re.search("oom-killer|ut of memory|allocation failure", text)))
    freed = any(heading == "freed" for heading, _ in triage.first_freer)
    claim("no stack of a first free is in this log", not freed)
    claim("look at the stack of the free before", freed)
    for name, _ in accused(triage):
        if not re.search(rf"\[{re.escape(name)}\b", text):
            wrong.append(f"accused of what no line says: {name}")
    if triage.release and triage.release not in text and not triage.counts.joined:
        wrong.append(f"kernel {triage.release}")
    for module in triage.modules.values():
        if module.name not in text and not triage.counts.joined:  # of pieces that were lost
            wrong.append(f"module {module.name}")
    return wrong


@pytest.mark.slow
def test_no_sentence_is_false() -> None:
    """Over all samples and their damaged copies; and the sentences do occur."""
    seen = ""
    count = 0
    for name, log in copies():
        text = log.decode("utf-8", "replace")
        for triage in read(io.BufferedReader(io.BytesIO(log))):
            count += 1
            assert false_sentences(triage, text) == [], name
            seen += explain.tell(triage, "x", width=10000)
    assert count > 1300
    for words in (
        "none of them is on a stack",
        "a page was damaged",
        "ext4's own RCU callback",
        "killed the PARENT",
        "hardware complained",
        "no stack of a first free",
        "look at the stack of the free before",
        "number 3 since boot",
    ):
        assert words in seen, "a sentence that no sample provokes is not tested"


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
def test_the_test_would_notice(path: Path) -> None:
    """The same reports, held against another text, are contradicted where they say anything."""
    triage = max(
        read(io.BufferedReader(io.BytesIO(sample(path)[1]))), key=lambda boot: boot.weight or 0
    )
    if triage.verdict == "this_bug" and triage.release:
        assert false_sentences(triage, "nothing")
