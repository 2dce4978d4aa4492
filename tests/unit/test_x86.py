"""x86-64's Code line: each opcode against objdump, what a fault means, and what it may not say."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpfwatch.kernellog import fault, story, x86, x86fault
from ebpfwatch.kernellog.diseases import recognise
from ebpfwatch.kernellog.report import Frame, Report
from tests.unit.test_triage import LOGS, parse, sample, triage

_SLOT = 32  # bytes: more than any instruction, filled up with one-byte ones, so the next is met

#: What the slab, the lists and the drivers do with memory, as gcc writes it.
KERNEL = {
    "488b4718": "mov 0x18(%rdi),%rax",
    "483bafd0000000": "cmp 0xd0(%rdi),%rbp",
    "498b4c2460": "mov 0x60(%r12),%rcx",
    "498b5c0500": "mov (%r13,%rax,1),%rbx",
    "4933 9c24b8000000": "xor 0xb8(%r12),%rbx",
    "894758": "mov %eax,0x58(%rdi)",
    "48890a": "mov %rcx,(%rdx)",
    "48895108": "mov %rdx,0x8(%rcx)",
    "48c7000000 0000": "movq $0x0,(%rax)",
    "c6400501": "movb $0x1,0x5(%rax)",
    "0fb64701": "movzbl 0x1(%rdi),%eax",
    "0fb74766": "movzwl 0x66(%rdi),%eax",
    "48634738": "movslq 0x38(%rdi),%rax",
    "480f4407": "cmove (%rdi),%rax",
    "f0ff4f10": "lock decl 0x10(%rdi)",
    "f048ff07": "lock incq (%rdi)",
    "f0480fb10f": "lock cmpxchg %rcx,(%rdi)",
    "f00fc10f": "lock xadd %ecx,(%rdi)",
    "f0480fc74e20": "lock cmpxchg16b 0x20(%rsi)",
    "65480fc70e": "cmpxchg16b %gs:(%rsi)",
    "488703": "xchg %rax,(%rbx)",
    "f0480fba2f03": "lock btsq $0x3,(%rdi)",
    "f6470801": "testb $0x1,0x8(%rdi)",
    "48833f00": "cmpq $0x0,(%rdi)",
    "8138efbeadde": "cmpl $0xdeadbeef,(%rax)",
    "ff5018": "call *0x18(%rax)",
    "65488b0425c0fb0100": "mov %gs:0x1fbc0,%rax",
    "488b05 11223344": "mov 0x44332211(%rip),%rax",
    "488b04c500000080": "mov -0x80000000(,%rax,8),%rax",
    "f348ab": "rep stos %rax,%es:(%rdi)",
    "410f94 4424 10": "sete 0x10(%r12)",
}


def has_objdump() -> bool:
    """Whether there is one that knows x86-64: that of an arm64 machine may not."""
    found = shutil.which("objdump")
    known = found and subprocess.run([found, "-i"], capture_output=True, text=True).stdout
    return bool(known and "i386" in known)


needs_objdump = pytest.mark.skipif(
    not has_objdump(), reason="no objdump that knows x86-64: apt-get install binutils"
)


def objdump(cases: list[bytes], directory: Path) -> list[tuple[int, str]]:
    """The length and the text of the first instruction of each."""
    file = directory / "code"
    file.write_bytes(b"".join(case[:15].ljust(_SLOT, b"\x90") for case in cases))
    words = ["objdump", "-D", "-w", "-b", "binary", "-m", "i386:x86-64", file]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = {}
    for line in said.splitlines():
        fields = re.match(r"\s*([0-9a-f]+):\t((?:[0-9a-f]{2} )+)\s*(.*)$", line)
        if fields:
            found[int(fields[1], 16)] = (len(fields[2].split()), _same(fields[3]))
    return [found[index * _SLOT] for index in range(len(cases))]


def _same(text: str) -> str:
    """Without what we leave out: prefixes that change nothing, an index that is none, a zero."""
    text = " ".join(re.sub(r"\s+#.*", "", text).split())
    text = re.sub(r"\b((rex(\.[WRXB]+)?|data16) )+", "", text)
    text = re.sub(r"(-?0x[0-9a-f]+)\(,%riz,\d\)", lambda m: hex(int(m[1], 16) % 2**64), text)
    text = re.sub(r"^(call|jmp|push)q ", r"\1 ", text.replace(",%riz,1", ""))
    return re.sub(r"\b0x0\(%", "(%", re.sub(r",%riz,\d", "", text))


@needs_objdump
def test_what_the_kernel_does_with_memory(tmp_path: Path) -> None:
    """Every one is decoded, whole, and as objdump reads it."""
    cases = [bytes.fromhex(code) for code in KERNEL]
    for case, ours, (length, theirs) in zip(cases, KERNEL.values(), objdump(cases, tmp_path)):
        found = x86.decode(case)
        assert found is not None and found.memory is not None, case.hex()
        assert (found.text, found.length) == (ours, len(case)) == (theirs, length)


@needs_objdump
@pytest.mark.parametrize("seed", [1, 2])
def test_every_opcode_is_read_as_objdump_reads_it(tmp_path: Path, seed: int) -> None:
    """512 opcodes, under 13 sets of prefixes, with random operands: where we give a length it is
    theirs, where we give a text it is theirs, and both often enough for that to mean something.
    """
    chance = random.Random(seed)
    heads = ["", "48", "4c", "49", "4f", "41", "66", "f0", "f048", "6548", "65", "f348", "f3"]
    opcodes = [bytes([*way, code]) for way in ((), (0x0F,)) for code in range(256)]
    cases = [
        bytes.fromhex(head) + opcode + chance.randbytes(11)
        for opcode in opcodes
        for head in heads
        for _ in range(4)
    ]
    lengths = texts = 0
    for case, (length, theirs) in zip(cases, objdump(cases, tmp_path)):
        found = x86.decode(case[:15])
        if found is None:
            continue
        if "(bad)" in theirs:
            assert not found.text, (case.hex(), found)
            continue
        assert found.length == length, (case.hex(), found, theirs)
        assert found.text in ("", theirs), case.hex()
        lengths += 1
        texts += bool(found.text)
    assert lengths > 10000 and texts > 2000


@given(st.binary(max_size=20))
def test_any_bytes_are_an_instruction_or_none(data: bytes) -> None:
    """Never an exception, never longer than what is there."""
    found = x86.decode(data)
    assert found is None or 0 < found.length <= len(data)


@given(st.binary(max_size=64), st.data())
def test_what_leads_to_the_fault_arrives_there(data: bytes, draw: st.DataObject) -> None:
    """The lengths of what is said to stand before a byte end at that byte."""
    marked = draw.draw(st.integers(0, len(data)))
    before = x86.leading(data, marked)
    assert sum(one.length for one in before) <= marked
    at = marked - sum(one.length for one in before)
    for one in before:
        assert x86.decode(data[at:marked]) == one
        at += one.length


@pytest.mark.parametrize(
    ("line", "register", "loader"),
    [
        ("90 90 90 48 8b 78 18 48 39 fd 74 10 <48> 3b 3f", "rdi", "mov 0x18(%rax),%rdi"),
        ("90 90 90 48 8b 78 18 e8 00 00 00 00 <48> 3b 3f", "rdi", ""),  # a call in between
        ("90 90 90 48 8b 78 18 48 89 c7 <48> 3b 3f", "rdi", ""),  # another value since
        ("90 90 90 48 8b 78 18 48 8d 3f <48> 3b 3f", "rdi", ""),
        ("90 90 90 48 8b 78 18 48 39 fd 74 10 <48> 3b 3f", "rsi", ""),
        ("48 8b 78 18", "rdi", ""),  # nothing marked
    ],
)
def test_who_loaded_a_register(line: str, register: str, loader: str) -> None:
    """Only if nothing that may have changed it stands in between."""
    data, marked = x86.code(line)
    found = x86.loader_of(register, x86.leading(data, max(marked, 0)))
    assert (found.text if found else "") == loader


def test_code_lines() -> None:
    """What is no code is none."""
    assert x86.code("0f <0b> 90") == (b"\x0f\x0b\x90", 1)
    assert x86.code("Bad RIP value.") == (b"", -1)
    assert x86.code("Unable to access opcode bytes at 0xffffffffffffffd6.") == (b"", -1)
    assert x86.code("") == (b"", -1)


def oops(code: str, address: int | None, error: int | None = None, **registers: int) -> Report:
    """A report that has only this."""
    headline = "BUG: unable to handle kernel paging request at 0"
    disease = recognise(headline)
    assert disease is not None
    return Report(
        disease,
        headline,
        arch="x86-64",
        code=code,
        fault_address=address,
        error_code=error,
        registers=registers,
        at=Frame("f", 1, 2),
    )


MEANINGS = [
    # code, fault address, error code, registers, what is said, what is not
    ("<48> 8b 47 18", 0x18, 0, {"RDI": 0}, ["agrees", "rdi was NULL", "offset 0x18"], "NOT"),
    ("<48> 8b 47 18", 0x30, 0, {"RDI": 0}, ["0x18, and NOT the fault address 0x30"], "agrees"),
    ("<48> 8b 40 f8", 2**64 - 8, 0, {"RAX": 0}, ["agrees", "offset -0x8"], "NOT"),
    ("<48> 8b 40 08", 2**64 - 4, 0, {"RAX": 2**64 - 12}, ["the error -12"], "NULL"),
    ("<48> 8b 40 08", 0xDEAD000000000108, None, {"RAX": 0xDEAD000000000100}, ["POISON1"], "NOT"),
    ("<48> 8b 40 08", None, None, {"RAX": 0x5A5A9F2D11C07B3E}, ["not canonical", "CR2"], "agrees"),
    (
        "<48> 8b 40 08",
        None,
        None,
        {"RAX": 0xFFFF888000000000},
        ["the object was in rax"],
        "fault a",
    ),
    ("<49> 8b 01", 0, 0, {"R09": 0}, ["r9 = 0x0"], "not all"),
    ("<48> 8b 04 c7", 0x808, 0, {"RDI": 8, "RAX": 256}, ["rdi = 0x8, rax = 0x100"], "NOT"),
    ("<48> 8b 47 18", 0x18, 0, {}, ["do not tell: not all are here"], "agrees"),
    ("<65> 48 8b 47 18", 0x18, 0, {"RDI": 0}, ["%gs has a base of its own"], "agrees"),
    ("<48> 8b 05 00 00 00 00", 0x18, 0, {}, ["relative to the instruction"], "agrees"),
    (
        "<89> 47 58",
        0x58,
        2,
        {"RDI": 0},
        ["0x0002: the kernel wrote to a page that is not"],
        "mixed",
    ),
    (
        "<89> 47 58",
        0x58,
        3,
        {"RDI": 0},
        ["0x0003: the kernel wrote to a page that it may"],
        "mixed",
    ),
    ("<89> 47 58", 0x58, 0, {"RDI": 0}, ["does not do that: the log may be mixed"], "wrote"),
    ("<f0> ff 4f 10", 0x10, 0, {"RDI": 0}, ["lock decl 0x10(%rdi)"], "mixed"),
    ("<8b> 07", 0x1000, 0, {"RDI": 0xFFE}, ["agrees"], "NOT"),  # across the border of a page
    ("<0f> ae 08 90", 0, 0, {}, ["(0f ae 08 90 ...) is not decoded here"], "agrees"),
    ("<0f>", 0, 0, {}, ["not decoded here"], "agrees"),
    ("<ff> d0", 0, 16, {"RAX": 0}, ["not decoded here"], "agrees"),
]


@pytest.mark.parametrize(("code", "address", "error", "registers", "words", "never"), MEANINGS)
def test_what_a_fault_means(
    code: str,
    address: int | None,
    error: int | None,
    registers: dict[str, int],
    words: list[str],
    never: str,
) -> None:
    """The instruction, its registers, and whether they give the address that the kernel names."""
    said = " ".join(x86fault.describe(oops(code, address, error, **registers)))
    for word in words:
        assert word in said
    assert never not in said


def test_only_a_fault_has_an_address() -> None:
    """BUG(), a warning and a lockup have code and registers, too."""
    for path in LOGS:
        for report in parse(sample(path)[1]):
            if report.kind in ("kernel_bug", "warning", "soft_lockup", "slab_corruption"):
                assert x86fault.describe(report) == []


def test_the_registers_of_others_are_not_taken() -> None:
    """Behind the stack come those of user space, or of what was interrupted."""
    _, log = sample(next(path for path in LOGS if path.stem == "null-write-driver-6.12-x86"))
    (report,) = parse(log)
    assert report.registers["RAX"] == 1 and report.code.endswith("31 c0 5b c3")
    assert (report.error_code, report.fault_address) == (2, 0x58)
    without = b"".join(
        line for line in log.splitlines(keepends=True) if b"RBX: ffff" not in line
    ).replace(b"Code: 0f", b"Kode: 0f")
    (report,) = parse(without)
    assert "RAX" not in report.registers and "RBX" not in report.registers and report.code == ""


def test_cr2_is_the_address_of_a_page_fault_and_of_nothing_else() -> None:
    """Where the headline was lost; a general protection fault leaves an older one's in CR2."""
    regs = "[1.0] RIP: 0010:f+0x1/0x2\n[1.0] CR2: 00000000000000d0 CR3: 0\n"
    (report,) = parse(f"[1.0] Oops: 0000 [#1] SMP\n{regs}".encode())
    assert report.fault_address == 0xD0
    (report,) = parse(f"[1.0] general protection fault: 0000 [#1] SMP\n{regs}".encode())
    assert report.fault_address is None


@pytest.mark.parametrize(
    ("release", "offset"),
    [("4.19.0-26-amd64", 0x18), ("6.1.0", 0x18), ("6.2.0", 8), ("6.12.9", 8), ("", -1)],
)
def test_where_a_page_has_its_cache(release: str, offset: int) -> None:
    """struct slab was rearranged in 6.2."""
    report = oops("", None)
    report.release = release
    assert x86fault.slab_cache_offset(report) == offset


def pages(base: int, gib: int, index: int, order: int = 0) -> tuple[int, int]:
    """An address in the page of that number behind a direct map's base, and its slab's page."""
    head = index & ~((1 << order) - 1)
    return base + (index << 12) + 0x480, gib + head * 64


@given(
    st.integers(0, 1 << 20),
    st.integers(0, 100),
    st.integers(0, 100),
    st.integers(0, 3),
    st.sampled_from(["RSI", "RBP", "R13", "R09"]),
)
def test_the_object_and_its_page(
    index: int, direct: int, virtual: int, order: int, register: str
) -> None:
    """Wherever KASLR put the two maps."""
    base = 0xFFFF888000000000 + (direct << 30)
    value, page = pages(base, 0xFFFFDBAE40000000 + (virtual << 30), index, order)
    report = oops("<48> 8b 47 18", 0x18, 0, RDI=0, RAX=page, RCX=0x1234, **{register: value})
    assert x86fault.object_and_page(report) == (
        register.lower().replace("r0", "r"),
        value,
        "rax",
    )
    assert fault.object_register(report) == (register.lower().replace("r0", "r"), value)
    del report.registers["RAX"]
    assert x86fault.object_and_page(report) is None


def test_two_objects_are_none() -> None:
    """What is not sure is not said."""
    value, page = pages(0xFFFF888000000000, 0xFFFFDBAE40000000, 5)
    report = oops("<48> 8b 47 18", 0x18, 0, RDI=0, RAX=page, RSI=value, RBP=value + 64)
    assert x86fault.object_and_page(report) is None


WORDS = ["RAX", "RDI", "R08", "R12", "RSP", "CR2"]


@given(
    st.binary(min_size=1, max_size=40),
    st.data(),
    st.dictionaries(st.sampled_from(WORDS), st.integers(0, 2**64 - 1)),
    st.none() | st.integers(0, 2**64 - 1),
    st.sampled_from(["kmem_cache_free", "kmem_cache_alloc", "x"]),
    st.sampled_from(
        ["general protection fault: 0000 [#1]", "Oops: 0002 [#1] SMP", "Oops: ffffff "]
    ),
)
def test_any_code_with_any_registers_is_told(
    code: bytes,
    draw: st.DataObject,
    registers: dict[str, int],
    address: int | None,
    symbol: str,
    headline: str,
) -> None:
    """Through the whole of triage: never an exception, always a verdict."""
    words = [f"{byte:02x}" for byte in code]
    marked = draw.draw(st.integers(0, len(words) - 1))
    words[marked] = f"<{words[marked]}>"
    lines = [
        f"BUG: unable to handle page fault for address: {address:016x}" if address else "x",
        headline,
        f"CPU: 1 PID: 2 Comm: x Not tainted {draw.draw(st.sampled_from(['4.19.0', '6.8.0']))} #1",
        f"RIP: 0010:{symbol}+0x1/0x2",
        f"Code: {' '.join(words)}",
        *(f"{name}: {content:016x}" for name, content in registers.items()),
        "Call Trace:",
        " ext4_i_callback+0x1/0x2",
    ]
    log = "".join(f"[1.0] {line}\n" for line in lines).encode()
    result = triage(log)
    story.tell(result, "x")
    story.to_json(result)
