"""`ebpfwatch balance`: the calls in a module's file, and what the counts say."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ebpfwatch.balance.calls import FUNCTIONS, UNCOUNTED, How, Module, Site, find
from ebpfwatch.balance.counts import Counts, Held, SiteCounts, judge, lines
from ebpfwatch.commands import balance
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.paths import Paths

#: What a compiler makes of it is for each call known from the text.
SOURCE = """\
void iput(void *);
void ihold(void *);
void *igrab(void *);
void dput(void *);
void new_inode(void *);
extern void (*table)(void *);
void pair(void *inode) { ihold(inode); iput(inode); __asm__ volatile("" ::: "memory"); }
void jump(void *inode) { iput(inode); }
void *take(void *inode) { void *got = igrab(inode); __asm__ volatile("" ::: "memory"); return got; }
void pointer(void) { table = dput; }
__attribute__((section(".init.text"))) void begin(void *inode) { ihold(inode); }
void other(void *super) { new_inode(super); __asm__ volatile("" ::: "memory"); }
"""

COMPILERS = ("cc", "aarch64-linux-gnu-gcc")


@pytest.fixture(params=COMPILERS)
def data(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    """An object file of this machine's compiler, or of the other's."""
    if shutil.which(request.param) is None:
        pytest.skip(f"no {request.param}")
    (tmp_path / "x.c").write_text(SOURCE)
    words = [request.param, "-O2", "-fno-pic", "-mcmodel=large", "-fcf-protection=none"]
    if request.param != "cc":
        words = [request.param, "-O2", "-fno-pic"]
    else:
        words[3] = "-mcmodel=kernel"
    subprocess.run([*words, "-c", "x.c", "-o", "x.o"], cwd=tmp_path, check=True)
    return (tmp_path / "x.o").read_bytes()


def test_every_call_is_found_and_no_other(data: bytes) -> None:
    """Calls, a jump at the end of a function; an address that is taken; not what is thrown away."""
    module = find(data)
    assert module is not None
    found = sorted((site.function, site.tail) for site in module.sites)
    assert found == [("igrab", False), ("ihold", False), ("iput", False), ("iput", True)]
    assert module.by_pointer == ("dput",)
    assert module.uncounted["inode"] == ("new_inode",)
    assert all(site.section == ".text" for site in module.sites)


def test_a_site_is_at_its_instruction(data: bytes) -> None:
    """The opcode of a call or a jump stands there."""
    module = find(data)
    assert module is not None
    start = _section(data, b".text")
    for site in module.sites:
        code = data[start + site.offset : start + site.offset + site.length]
        if site.length == 5:
            assert code[:1] == (b"\xe9" if site.tail else b"\xe8")
        else:
            assert code[3] >> 2 == (0b000101 if site.tail else 0b100101)


def _section(data: bytes, wanted: bytes) -> int:
    """Where a section lies in the file."""
    begin = int.from_bytes(data[0x28:0x30], "little")
    size, count, strings = (int.from_bytes(data[at : at + 2], "little") for at in (58, 60, 62))
    headers = [data[begin + size * i : begin + size * (i + 1)] for i in range(count)]
    texts = int.from_bytes(headers[strings][24:32], "little")
    for header in headers:
        at = texts + int.from_bytes(header[:4], "little")
        if data[at : data.index(b"\0", at)] == wanted:
            return int.from_bytes(header[24:32], "little")
    raise AssertionError(wanted)


@pytest.mark.parametrize("step", (1, 7, 64))
def test_a_damaged_file_is_no_exception(data: bytes, step: int) -> None:
    """Cut anywhere: None, or a module that says less."""
    for end in range(0, len(data), step * 16):
        find(data[:end])
    for at in range(0, len(data), step * 8):
        find(data[:at] + b"\xff" * step + data[at + step :])
    assert find(b"") is None and find(b"\x7fELF" + bytes(100)) is None


def test_the_tables_fit() -> None:
    """No function is counted and called uncounted; only results are waited for."""
    for kind, names in UNCOUNTED.items():
        assert not set(names) & set(FUNCTIONS), kind
    assert all(call.sign > 0 for call in FUNCTIONS.values() if call.how >= How.RESULT)


GET = Site("ihold", ".text", 0, 4)
PUT = Site("iput", ".text", 8, 4)
ONCE_MORE = Site("iput", ".text", 16, 4, tail=True)
OPEN = Site("filp_open", ".text", 24, 4)
CLOSE = Site("filp_close", ".text", 32, 4)
WHOLE = Module((GET, PUT, ONCE_MORE, OPEN, CLOSE), (), {})


def counts(*sites: SiteCounts, **more: Any) -> Counts:
    """With nothing left out, unless ``more`` says so."""
    return Counts(more.pop("module", WHOLE), sites, **more)


def verdict(counted: Counts, kind: str = "inode") -> tuple[str, str]:
    """The verdict of one kind, and its words."""
    (found,) = (one for one in judge(counted) if one.kind == kind)
    return found.verdict, " ".join(found.says)


PAIRED = (SiteCounts(GET, "a", 500), SiteCounts(PUT, "b", 500))


def test_what_pairs_adds_up() -> None:
    """And says so; the kinds that it does not use are not spoken of."""
    assert verdict(counts(*PAIRED)) == ("adds up", "")
    assert verdict(counts(*PAIRED), "file") == ("not used", "")
    text = "\n".join(lines(counts(*PAIRED), judge(counts(*PAIRED))))
    assert "inode: adds up: 500 taken, 500 given back" in text and "file" not in text


def test_one_too_many_names_its_place() -> None:
    """Ten returns beyond what was taken, all from one place."""
    counted = counts(*PAIRED, SiteCounts(ONCE_MORE, "work+0x10 [m]", 10, beyond=10, again=9))
    found, says = verdict(counted)
    assert found == "too many given back"
    assert "10 of 10 calls of iput at work+0x10 [m]" in says


def test_a_reference_from_before_the_watch_is_no_mistake() -> None:
    """One for each object, however many objects."""
    counted = counts(*PAIRED, SiteCounts(ONCE_MORE, "c", 40, beyond=40, again=0))
    found, says = verdict(counted)
    assert found == "adds up" and "40 were given back that were not seen taken" in says


def test_files_that_are_never_closed() -> None:
    """Where they were opened, how many, how old; a few are nothing to speak of."""
    held = tuple(Held(0, 1, float(age)) for age in range(1, 31))
    counted = counts(SiteCounts(OPEN, "open", 80), SiteCounts(CLOSE, "close", 50), held=held)
    found, says = verdict(counted, "file")
    assert found == "not given back"
    assert "30 references of 30 objects, last taken by filp_open at open" in says
    assert "30.0 s old" in says
    few = counts(SiteCounts(OPEN, "open", 55), SiteCounts(CLOSE, "close", 50))
    assert verdict(few, "file")[0] == "adds up"


def test_get_file_leaves_no_call() -> None:
    """So more closed than opened accuses nobody."""
    counted = counts(SiteCounts(OPEN, "o", 50), SiteCounts(CLOSE, "c", 90, beyond=40, again=39))
    assert verdict(counted, "file")[0] == "adds up"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"module": Module((), ("iput",), {})}, "uses the address of iput"),
        ({"module": Module((), (), {"inode": ("new_inode",)})}, "also calls new_inode"),
        ({"unwatched": ((PUT, "Invalid argument"),)}, "could not be watched: Invalid argument"),
        ({"missed": 3}, "skipped 3 runs"),
    ],
)
def test_what_was_not_counted_is_not_judged(more: dict[str, Any], says: str) -> None:
    """Whatever the counts are."""
    counted = counts(*PAIRED, SiteCounts(ONCE_MORE, "c", 10, beyond=10, again=9), **more)
    found, words = verdict(counted)
    assert found == "not judged" and says in words


def test_calls_that_were_lost_are_not_judged() -> None:
    """More objects than there is room for."""
    counted = counts(SiteCounts(GET, "a", 500, lost=7), SiteCounts(PUT, "b", 400))
    assert verdict(counted)[0] == "not judged"


class Kernel:
    """A /sys and a directory of modules, made by hand."""

    def __init__(self, root: Path, data: bytes) -> None:
        self.paths = Paths(proc=root / "proc", sys=root / "sys")
        self.home = root / "sys/module/lender"
        (self.home / "sections").mkdir(parents=True)
        (self.home / "sections/.text").write_text("0xffff800001234000\n")
        self.modules = root / "modules"
        self.modules.mkdir()
        (self.modules / "lender.ko").write_bytes(data)


def test_the_file_of_a_loaded_module(data: bytes, tmp_path: Path) -> None:
    """Found by its name, and its calls placed where the kernel has its code."""
    kernel = Kernel(tmp_path, data)
    module = balance._file(kernel.paths, "lender", kernel.modules)
    addresses = balance._sections(kernel.paths, "lender", module.sites)
    assert addresses == {".text": 0xFFFF800001234000}


@pytest.mark.parametrize("where", ("not loaded", "built in", "no file", "no ELF"))
def test_a_module_that_cannot_be_watched(where: str, data: bytes, tmp_path: Path) -> None:
    """Is said in one line, with what to do."""
    kernel = Kernel(tmp_path, data)
    if where in ("not loaded", "built in"):
        shutil.rmtree(kernel.home if where == "not loaded" else kernel.home / "sections")
    if where == "no file":
        (kernel.modules / "lender.ko").unlink()
    if where == "no ELF":
        (kernel.modules / "lender.ko").write_bytes(b"MZ")
    with pytest.raises(EbpfwatchError) as refused:
        balance._file(kernel.paths, "lender", kernel.modules)
    code = Exit.UNAVAILABLE if where in ("no file", "no ELF") else Exit.USAGE
    assert refused.value.exit_code is code and refused.value.hint


def test_hidden_addresses(data: bytes, tmp_path: Path) -> None:
    """A kernel that shows zeros is told."""
    kernel = Kernel(tmp_path, data)
    (kernel.home / "sections/.text").write_text("0x0000000000000000\n")
    with pytest.raises(EbpfwatchError, match="does not tell where the code"):
        balance._sections(kernel.paths, "lender", [Site("iput", ".text", 0, 4)])
