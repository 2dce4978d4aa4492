"""The Code line of an oops: what Capstone reads there, what a fault means, what may not be said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpfwatch.kernellog.known import recognise
from ebpfwatch.kernellog.report import Frame, Report
from ebpfwatch.triage import explain, fault, instructions
from ebpfwatch.triage.registers import describe, object_and_page, slab_cache_offset
from tests.unit.test_triage import LOGS, parse, sample, triage

pytestmark = pytest.mark.needs("capstone")

ROOT = Path(__file__).parents[2]
#: What the slab, the lists and the drivers do with memory, as gcc writes it: text, the register
#: with the pointer, offset, "r" and "w", what it sets.
KERNEL = {
    "488b4718": ("movq 0x18(%rdi), %rax", "rdi", 0x18, "r", {"rax"}),
    "483bafd0000000": ("cmpq 0xd0(%rdi), %rbp", "rdi", 0xD0, "r", set()),
    "498b5c0500": ("movq (%r13, %rax), %rbx", "r13", 0, "r", {"rbx"}),
    "49339c24b8000000": ("xorq 0xb8(%r12), %rbx", "r12", 0xB8, "r", {"rflags", "rbx"}),
    "894758": ("movl %eax, 0x58(%rdi)", "rdi", 0x58, "w", set()),
    "48c70000000000": ("movq $0, (%rax)", "rax", 0, "w", set()),
    "0fb64701": ("movzbl 1(%rdi), %eax", "rdi", 1, "r", {"rax"}),
    "0fb74766": ("movzwl 0x66(%rdi), %eax", "rdi", 0x66, "r", {"rax"}),
    "48634738": ("movslq 0x38(%rdi), %rax", "rdi", 0x38, "r", {"rax"}),
    "480f4407": ("cmoveq (%rdi), %rax", "rdi", 0, "r", {"rax"}),
    "f0ff4f10": ("lock decl 0x10(%rdi)", "rdi", 0x10, "rw", {"rflags"}),
    "f0480fb10f": ("lock cmpxchgq %rcx, (%rdi)", "rdi", 0, "rw", None),
    "f00fc10f": ("lock xaddl %ecx, (%rdi)", "rdi", 0, "rw", {"rcx"}),
    "65480fc70e": ("cmpxchg16b %gs:(%rsi)", "rsi", 0, "rw", None),
    "488703": ("xchgq %rax, (%rbx)", "rbx", 0, "rw", {"rax"}),
    "f0480fba2f03": ("lock btsq $3, (%rdi)", "rdi", 0, "rw", {"rflags"}),
    "f6470801": ("testb $1, 8(%rdi)", "rdi", 8, "r", set()),
    "48833f00": ("cmpq $0, (%rdi)", "rdi", 0, "r", set()),
    "ff5018": ("callq *0x18(%rax)", "rax", 0x18, "r", None),
    "f348ab": ("rep stosq %rax, (%rdi)", "rdi", 0, "w", None),
    "410f94442410": ("sete 0x10(%r12)", "r12", 0x10, "w", set()),
    "f94018 00": ("ldr x0, [x0, #0x30]", "x0", 0x30, "r", {"x0"}),
    "f9406801": ("ldr x1, [x0, #0xd0]", "x0", 0xD0, "r", {"x1"}),
    "f9000420": ("str x0, [x1, #8]", "x1", 8, "w", set()),
    "b9400000": ("ldr w0, [x0]", "x0", 0, "r", {"x0"}),
    "f8627800": ("ldr x0, [x0, x2, lsl #3]", "x0", 0, "r", {"x0"}),
    "a9401404": ("ldp x4, x5, [x0]", "x0", 0, "r", {"x4", "x5"}),
    "f8028c41": ("str x1, [x2, #0x28]!", "x2", 0x28, "w", {"x2"}),
}


def arch_of(code: str) -> str:
    """The rows of arm64 are words that begin with its loads and stores."""
    return "arm64" if code.replace(" ", "")[:2] in ("f9", "f8", "b9", "a9") else "x86-64"


def raw(code: str) -> bytes:
    """The bytes as they lie in memory: a word of arm64 is little-endian."""
    found = bytes.fromhex(code)
    return found[::-1] if arch_of(code) == "arm64" else found


@pytest.mark.parametrize("code", KERNEL)
def test_what_the_kernel_does_with_memory(code: str) -> None:
    """Address, access and what is changed: Capstone's own flags are wrong for some of these."""
    text, base, offset, access, sets = KERNEL[code]
    found = instructions.decode(raw(code), arch_of(code))
    assert found is not None and found.memory is not None
    assert (found.text, found.length) == (text, len(raw(code)))
    assert (found.memory.base, found.memory.offset) == (base, offset)
    assert (found.reads, found.writes) == ("r" in access, "w" in access)
    assert found.sets == sets


@pytest.mark.parametrize("code", ["488d4718", "0f1f4008", "a4", "0f0b", "50"])
def test_what_touches_no_memory_or_two_places(code: str) -> None:
    """lea, nop, movsb, ud2, push of a register: no address is made of them."""
    found = instructions.decode(bytes.fromhex(code), "x86-64")
    assert found is not None and found.memory is None


@given(st.binary(max_size=20), st.sampled_from(["x86-64", "arm64", "arm", ""]))
def test_any_bytes_are_an_instruction_or_none(data: bytes, arch: str) -> None:
    """Never an exception, never longer than what is there."""
    found = instructions.decode(data, arch)
    assert found is None or 0 < found.length <= len(data)


def test_without_capstone_the_bytes_are_named(tmp_path: Path) -> None:
    """The verdict stays; what could not be read is said, with how to get it."""
    (tmp_path / "capstone.py").write_text("raise ImportError\n")
    log = ROOT / "tests/fixtures/logs/case-4.19-arm64.txt"
    done = subprocess.run(
        [sys.executable, "-m", "ebpfwatch", "triage", str(log)],
        cwd=ROOT,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    said = " ".join(done.stdout.split())
    assert done.returncode == 0 and "THIS BUG" in said
    assert "the bytes of the faulting instruction, 01 68 40 f9, were not read" in said
    assert "apt-get install python3-capstone" in said
    assert "the object is" not in said, "which register holds it the code would have told"


@given(st.binary(max_size=64), st.data())
def test_what_leads_to_the_fault_arrives_there(data: bytes, draw: st.DataObject) -> None:
    """The lengths of what is said to stand before a byte end at that byte."""
    marked = draw.draw(st.integers(0, len(data)))
    before = instructions.leading(data, marked, "x86-64")
    assert sum(one.length for one in before) <= marked
    at = marked - sum(one.length for one in before)
    for one in before:
        assert instructions.decode(data[at:marked], "x86-64") == one
        at += one.length


@pytest.mark.parametrize(
    ("line", "register", "loader"),
    [
        ("90 90 90 48 8b 78 18 48 39 fd 74 10 <48> 3b 3f", "rdi", "movq 0x18(%rax), %rdi"),
        ("90 90 90 48 8b 78 18 e8 00 00 00 00 <48> 3b 3f", "rdi", ""),  # a call in between
        ("90 90 90 48 8b 78 18 48 89 c7 <48> 3b 3f", "rdi", ""),  # another value since
        ("90 90 90 48 8b 78 18 48 8d 3f <48> 3b 3f", "rdi", ""),
        ("90 90 90 48 8b 78 18 48 39 fd 74 10 <48> 3b 3f", "rsi", ""),
        ("48 8b 78 18", "rdi", ""),  # nothing marked
    ],
)
def test_who_loaded_a_register(line: str, register: str, loader: str) -> None:
    """Only if nothing that may have changed it stands in between."""
    data, marked = instructions.code(line, "x86-64")
    before = instructions.leading(data, max(marked, 0), "x86-64")
    found = instructions.loader_of(register, before)
    assert (found.text if found else "") == loader


def test_code_lines() -> None:
    """What is no code is none."""
    assert instructions.code("0f <0b> 90", "x86-64") == (b"\x0f\x0b\x90", 1)
    assert instructions.code("9a820000 (f9406801)", "arm64") == (
        b"\x00\x00\x82\x9a\x01\x68\x40\xf9",
        4,
    )
    for line in ("Bad RIP value.", "Unable to access opcode bytes at 0xffffffffffffffd6.", ""):
        assert instructions.code(line, "x86-64") == (b"", -1)
    assert instructions.code("bad PC value", "arm64") == (b"", -1)


def oops(code: str, address: int | None, error: int | None = None, **registers: int) -> Report:
    """A report that has only this."""
    headline = "BUG: unable to handle kernel paging request at 0"
    known = recognise(headline)
    assert known is not None
    return Report(
        known,
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
    ("<0f>", 0, 0, {}, ["0f, are unknown to Capstone"], "agrees"),
    ("<ff> d0", 0, 16, {"RAX": 0}, ["callq *%rax: it has no single memory operand"], "agrees"),
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
    said = " ".join(describe(oops(code, address, error, **registers)))
    for word in words:
        assert word in said
    assert never not in said


def test_only_a_fault_has_an_address() -> None:
    """BUG(), a warning and a lockup have code and registers, too."""
    for path in LOGS:
        for report in parse(sample(path)[1]):
            if report.kind in ("kernel_bug", "warning", "soft_lockup", "slab_corruption"):
                assert describe(report) == []


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
    assert slab_cache_offset(report) == offset


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
    assert object_and_page(report) == (
        register.lower().replace("r0", "r"),
        value,
        "rax",
    )
    assert fault.object_register(report) == (register.lower().replace("r0", "r"), value)
    del report.registers["RAX"]
    assert object_and_page(report) is None


def test_two_objects_are_none() -> None:
    """What is not sure is not said."""
    value, page = pages(0xFFFF888000000000, 0xFFFFDBAE40000000, 5)
    report = oops("<48> 8b 47 18", 0x18, 0, RDI=0, RAX=page, RSI=value, RBP=value + 64)
    assert object_and_page(report) is None


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
    explain.tell(result, "x")
    explain.to_json(result)
