"""Which modules are asked about, in which order, and nobody is accused for what it could do."""

from __future__ import annotations

import io
import json
import lzma
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ebpfwatch.commands import main, suspects
from ebpfwatch.paths import Paths
from ebpfwatch.triage import kofile
from ebpfwatch.triage.summary import Triage, read
from ebpfwatch.triage.suspects import Loaded, Ranking, rank

#: Source of a module's file: what it calls, what it prints, and its .modinfo.
SOURCE = """\
int printk(const char *, ...);
void dput(void *); void iput(void *); int register_kprobe(void *); void *kern_path(void);
int f(void *d) {{ {body} return 0; }}
static const char info[] __attribute__((section(".modinfo"), used)) =
    "license=Proprietary\\0author=A. Author\\0srcversion={srcversion}\\0version=1.{n}";
"""
BODIES = {
    "guilty": 'dput(d); printk("\\0016this %s format is right\\n", "file");',
    "prober": "return register_kprobe(d);",
    "printer": 'printk("\\0016nobody knows the line of the printer %d\\n", 7);',
    "harmless": 'printk("hello");',
    "changed": "iput(d);",
    "intree": "iput(d);",
    "intree_patched": "iput(d);",
}
LINE = "nobody knows the line of the printer {}"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the modules, one of them compressed, and what /proc and /sys say of them."""
    root = tmp_path_factory.mktemp("suspects")
    files, sys, proc = root / "files", root / "sys/module", root / "proc"
    for directory in (files, sys, proc):
        directory.mkdir(parents=True)
    for n, (name, body) in enumerate(BODIES.items()):
        source = SOURCE.format(body=body, srcversion=f"ABC{n}", n=n)
        (root / f"{name}.c").write_text(source)
        command = ["gcc", "-c", "-o", f"{root / name}.o", f"{root / name}.c"]
        subprocess.run(command, check=True, capture_output=True)
        # As the kernel's own Makefile.modfinal does: a relocatable link, with a build id.
        linked = ["ld", "-r", "--build-id=sha1", "-o", f"{files / name}.ko", f"{root / name}.o"]
        subprocess.run(linked, check=True)
        here = sys / name
        (here / "notes").mkdir(parents=True)
        (here / "initstate").write_text("live\n")
        (here / "srcversion").write_text(f"ABC{n}\n")
        data = (files / f"{name}.ko").read_bytes()
        note = root / "note"
        dump: list[str] = ["objcopy", "-O", "binary", "--only-section=.note.gnu.build-id"]
        dump += ["--set-section-flags", ".note.gnu.build-id=alloc"]
        subprocess.run([*dump, str(files / f"{name}.ko"), str(note)], check=True)
        (here / "notes/.note.gnu.build-id").write_bytes(note.read_bytes())
        assert kofile.build_id(data) == note.read_bytes()[16:].hex() != ""
    (files / "guilty.ko.xz").write_bytes(lzma.compress((files / "guilty.ko").read_bytes()))
    (files / "guilty.ko").unlink()
    for name in ("changed", "intree_patched"):  # what is loaded is not what is on disk
        note = sys / name / "notes/.note.gnu.build-id"
        note.write_bytes(note.read_bytes()[:16] + bytes(20))
    taints = {"intree": "", "intree_patched": ""}
    (proc / "modules").write_text(
        "".join(
            f"{name} 16384 0 - Live 0x0000000000000000 {taints.get(name, '(OE)')}".rstrip() + "\n"
            for name in reversed([*BODIES, "without_file"])
        )
    )
    (sys / "without_file").mkdir()
    (sys / "without_file/initstate").write_text("live\n")
    return root


def paths(tree: Path) -> Paths:
    """The roots in there."""
    return Paths(proc=tree / "proc", sys=tree / "sys", dev=tree / "dev")


def log(times: int = 30) -> list[Triage]:
    """A kernel's log with one line that nobody knows, many times."""
    lines = [f"[ {100 + n}.000000] {LINE.format(n)}" for n in range(times)]
    return read(io.BufferedReader(io.BytesIO("\n".join(lines).encode() + b"\n")))


def finding(who: str, strength: str = "shown", **more: Any) -> dict[str, Any]:
    """As much of a finding as matters here."""
    named = {"who": who, "strength": strength, "because": ["x"]}
    return {"id": "1", "verdict": "double_free", "confidence": "confirmed", "test": False,
            "responsible": named, **more}  # fmt: skip


def ranks(ranking: Ranking) -> dict[str, str]:
    """Module: rank, in their order."""
    return {one.loaded.name: one.rank for one in ranking.suspects}


def test_the_ranks_and_their_reasons(tree: Path) -> None:
    """Evidence first, then what is not known, then what is only able; in-tree ones are not asked
    about, but for one that is not what its file is.
    """
    found = [finding("module guilty (out-of-tree, unsigned)")]
    ranking = rank(suspects.read_loaded(paths(tree)), tree / "files", log(), found)
    assert list(ranks(ranking).items()) == [
        ("guilty", "named"),
        ("printer", "connected"),
        ("changed", "unread"),
        ("intree_patched", "unread"),
        ("without_file", "unread"),
        ("prober", "able"),
        ("harmless", "unlikely"),
    ]
    one = {suspect.loaded.name: suspect for suspect in ranking.suspects}
    assert "the finding 1 (double_free, confirmed) shows" in one["guilty"].reasons[0]
    assert sum(one["guilty"].calls.values(), []) == ["dput"]
    assert one["guilty"].info["author"] == "A. Author" and one["guilty"].same is True
    assert f'has the text of "{LINE.format(0)}" (30 times)' in one["printer"].reasons[0]
    assert one["changed"].same is False and "is not what was loaded" in one["changed"].reasons[0]
    assert one["without_file"].reasons == ["there is no file of it"]
    assert "can reach every function" in one["prober"].clears
    assert one["harmless"].clears.startswith("its file does")
    assert (ranking.loaded, ranking.notes) == (8, [])


def test_nobody_is_accused_without_a_reason(tree: Path) -> None:
    """No finding and no log: nobody has a rank above "not known"; a test, an unknown one and a
    piece of the kernel name no module.
    """
    innocent = [
        finding("module guilty", test=True),
        finding("", "unknown"),
        finding("the kernel's own code"),
        {"id": "damaged", "responsible": "x"},
    ]
    loaded = suspects.read_loaded(paths(tree))
    ranking = rank(loaded, tree / "files", log(5), innocent)
    assert set(ranks(ranking).values()) == {"unread", "able", "unlikely"}
    weaker = rank(loaded, tree / "files", [], [finding("module guilty", "suspected")])
    assert ranks(weaker)["guilty"] == "suspected"


def test_an_upgraded_kernel_package_accuses_none(tree: Path) -> None:
    """Where most in-tree modules differ from their files, that is told once."""
    loaded = [Loaded(name, build_id="00" * 20) for name in BODIES]
    ranking = rank(loaded, tree / "files", [], [])
    assert ranking.suspects == []
    assert "7 of 7 modules of the kernel's own tree are not what is on disk" in ranking.notes[0]


def test_one_that_hides_and_one_that_is_gone(tree: Path, tmp_path: Path) -> None:
    """In /sys/module and not in /proc/modules; named by a finding and not loaded."""
    (tmp_path / "modules").write_text("prober 1 0 - Live 0x0 (OE)\n")
    hiding = Paths(proc=tmp_path, sys=tree / "sys")
    loaded = suspects.read_loaded(hiding)
    assert {one.name for one in loaded if one.hidden} == {*BODIES, "without_file"} - {"prober"}
    ranking = rank([Loaded("prober", "OE"), Loaded("intree", hidden=True)], tree / "files", [],
                   [finding("module gone (out-of-tree)")])  # fmt: skip
    assert ranks(ranking) == {"gone": "named", "intree": "hidden", "prober": "able"}
    assert "it is not loaded now" in ranking.suspects[0].reasons[-1]


def test_the_order_of_loading(tree: Path) -> None:
    """The newest stands first in /proc/modules."""
    order = {one.name: one.order for one in suspects.read_loaded(paths(tree))}
    assert (order["guilty"], order["without_file"]) == (1, 8)


def test_what_was_not_looked_at_is_said(tree: Path, tmp_path: Path) -> None:
    """No directory, an empty one, no time, a file that is damaged."""
    loaded = suspects.read_loaded(paths(tree))
    assert "give --modules DIR" in rank(loaded, None, [], []).notes[0]
    assert "no files of modules below" in rank(loaded, tmp_path, [], []).notes[0]
    assert "after 0 of 7" in rank(loaded, tree / "files", [], [], seconds=-1).notes[0]
    (tmp_path / "prober.ko.xz").write_bytes(b"nonsense")
    (tmp_path / "harmless.ko").write_bytes(b"\x7fELF\x02\x01")
    found = rank([Loaded("prober", "O"), Loaded("harmless", "O")], tmp_path, [], [])
    assert ranks(found) == {"harmless": "unread", "prober": "unread"}
    assert [one.reasons[0] for one in found.suspects] == [
        "its file's table of symbols could not be read",
        "its file could not be read",
    ]


def test_damaged_files_have_nothing_in_them(tree: Path) -> None:
    """And raise nothing."""
    data = (tree / "files/prober.ko").read_bytes()
    assert kofile.modinfo(data)["srcversion"] == "ABC1" and kofile.has_symbols(data)
    for cut in range(0, len(data), 11):
        for damaged in (data[:cut], data[:cut] + b"\xff" * 32 + data[cut + 32 :]):
            kofile.modinfo(damaged)
            kofile.build_id(damaged)
            kofile.calls(damaged)


@pytest.fixture
def here(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command's words, on the machine of the fixture."""
    monkeypatch.setattr(suspects, "Paths", lambda: paths(tree))
    (tmp_path / "findings").mkdir()
    return ["suspects", "--modules", str(tree / "files"), "--state-directory", str(tmp_path)]


def test_the_command(here: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0 while nothing points to a module, 1 then; what is missing is said, names are made
    harmless.
    """
    assert main(here) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "7 modules to ask about, 8 are loaded; something points to 0 of them" in out
    assert "That a module could do it is no evidence" in out
    assert "Not known: the kernel's log was not read:" in out
    assert "it says of itself: version 1.1, author A. Author, license Proprietary" in out
    body = finding("module guilty (\x1b[31mout-of-tree)")
    (tmp_path / "findings/1.json").write_text(json.dumps(body))
    (tmp_path / "log").write_text("\n".join(LINE.format(n) for n in range(30)))
    assert main([*here, "--log", str(tmp_path / "log")]) == 1
    out = capsys.readouterr().out
    assert "1. guilty (OE): a finding shows that its code made the wrong call" in out
    assert "2. printer (OE)" in out and "\x1b" not in out
    assert main([*here, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == 1 and told["suspects"][0]["rank"] == "named"


def test_the_living_log(here: list[str], tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Records of /dev/kmsg as the kernel gives them; what user space wrote there counts for
    nothing.
    """
    record = b"%d,1,5000000,-;" + LINE.format(1).encode() + b"\n SUBSYSTEM=x\n"
    assert suspects.kernel_line(record % 6) == b"[    5.000000] " + LINE.format(1).encode() + b"\n"
    assert suspects.kernel_line(record % 14) == b""
    assert suspects.kernel_line(b"nonsense") == b""


def test_words_that_are_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit 64."""
    assert main(["suspects", "--modules", "/nonexistent"]) == 64
    assert "not a directory" in capsys.readouterr().err
    assert main(["suspects", "--log", "/nonexistent"]) == 64
