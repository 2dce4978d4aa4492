"""What goes between the daemon and its loader child: whole and checked, or one clear error."""

from __future__ import annotations

import copy
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ebpfwatch.catalogue.ladder import Attachment
from ebpfwatch.config import Config, loader_request
from ebpfwatch.errors import EbpfwatchError, Exit, Failure
from ebpfwatch.kernel import handoff
from ebpfwatch.kernel.dry_run import DryRun, Program
from ebpfwatch.kernel.hook import LoadedHook
from ebpfwatch.kernel.protocol import Examined, Features, Learned, Loaded, LoadRequest, Place
from ebpfwatch.kernel.tracebuffer import Dump
from ebpfwatch.text.records import from_json, to_json

FEATURES = Features(
    ringbuf=True, cmpxchg=False, probe_read_kernel=True, direct_read=False, btf=False
)
HOOKS = (
    LoadedHook("evict", "kprobe", "ext4_evict_inode", ("ext4_evict_inode",), reason="no such"),
    LoadedHook("rcu_free", "kprobe", "kmem_cache_free", ("kmem_cache_free",), shared=True),
    LoadedHook("alloc", reason="left out", left_out="raw_tracepoint kmem_cache_alloc"),
)
LOADED = Loaded(
    HOOKS,
    FEATURES,
    {"OFF_I_INO": 64},
    Learned(1, 2, 3, 4, 5),
    ("table", "notes"),
    ("ext4_evict_inode",),
    (Place("evict", "kprobe", "f.isra.0", Attachment("f", "ext4_evict_inode", at_return=True)),),
    137.5,
    Dump(True, ""),
)
REQUEST = loader_request(Config())
EXAMINED = Examined(
    HOOKS,
    FEATURES,
    DryRun((Program("evict", "f", "R1 is bad"),), "evict=none", Failure("a", "b", Exit.OSERR)),
)
RECORDS = [REQUEST, LOADED, EXAMINED, Failure("a", "b", Exit.UNAVAILABLE)]


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The daemon's and the child's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_survives_its_way(record: Any) -> None:
    """Equal, down to tuples and enums."""
    assert from_json(type(record), json.loads(json.dumps(to_json(record)))) == record


@pytest.mark.parametrize("record", [LOADED, EXAMINED], ids=lambda record: type(record).__name__)
def test_it_comes_with_its_fds(ends: tuple[socket.socket, socket.socket], record: Any) -> None:
    """And they are closed at exec."""
    handoff.send(ends[1], record, (0, 1))
    received, fds = handoff.receive(ends[0], type(record))
    assert received == record and len(fds) == 2
    for fd in fds:
        assert not os.get_inheritable(fd)
        os.close(fd)


def test_the_childs_error_is_raised(ends: tuple[socket.socket, socket.socket]) -> None:
    """With its words and its exit code, whatever was expected."""
    handoff.send(ends[1], Failure("no kprobes", "see check", Exit.UNAVAILABLE))
    with pytest.raises(EbpfwatchError, match="no kprobes; see check") as raised:
        handoff.receive(ends[0], Loaded)
    assert raised.value.exit_code is Exit.UNAVAILABLE


def test_another_record_is_an_error(ends: tuple[socket.socket, socket.socket]) -> None:
    """One line that names both; a defect."""
    handoff.send(ends[1], EXAMINED)
    with pytest.raises(EbpfwatchError, match="Loaded was expected, and it is Examined") as raised:
        handoff.receive(ends[0], Loaded)
    assert raised.value.exit_code is Exit.SOFTWARE


@pytest.mark.parametrize("message", [b"[]", b"{}", b"\xff", b'{"Loaded": 1}', b'{"Failure": {}}'])
def test_no_record_is_an_error(ends: tuple[socket.socket, socket.socket], message: bytes) -> None:
    """Whatever came instead."""
    ends[1].send(message)
    with pytest.raises(EbpfwatchError, match="between the daemon and its loader is wrong"):
        handoff.receive(ends[0], Loaded)


def test_who_has_gone_sends_nothing(ends: tuple[socket.socket, socket.socket]) -> None:
    """``EOFError``, which the daemon turns into the child's exit status."""
    ends[1].close()
    with pytest.raises(EOFError):
        handoff.receive(ends[0], Loaded)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value that is neither list nor object."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))
    else:
        yield path


def at(value: Any, path: tuple[Any, ...]) -> Any:
    """What lies there."""
    for key in path:
        value = value[key]
    return value


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_any_wrong_field_is_named(record: Any) -> None:
    """Each field in turn, at any depth: of the wrong type, missing, and one too many."""
    whole = json.loads(json.dumps(to_json(record)))
    kind = type(record)
    for path in places(whole):
        name = str(path[-1]) if isinstance(path[-1], str) else f"[{path[-1]}]"
        others: tuple[object, ...] = (None, [], {}, [None], "text", 1.5, True)
        for wrong in others:
            if type(wrong) is type(at(whole, path)):
                continue
            said = copy.deepcopy(whole)
            at(said, path[:-1])[path[-1]] = wrong
            with pytest.raises(ValueError, match=re.escape(name) + " must be "):
                from_json(kind, said)
    for path in {leaf[:n] for leaf in places(whole) for n in range(len(leaf))}:
        if not isinstance(at(whole, path), dict) or path == ("offsets",):
            continue
        for name in at(whole, path):
            said = copy.deepcopy(whole)
            del at(said, path)[name]
            with pytest.raises(ValueError, match=f"{name} is missing"):
                from_json(kind, said)
        said = copy.deepcopy(whole)
        at(said, path)["surplus"] = 1
        with pytest.raises(ValueError, match="surplus is unknown"):
            from_json(kind, said)


def test_a_list_of_the_wrong_things() -> None:
    """Not a list, and an object where a record belongs."""
    for wrong in ("table", {"0": "table"}, [1]):
        with pytest.raises(ValueError, match="LoadRequest.mounts"):
            from_json(LoadRequest, {**to_json(REQUEST), "mounts": wrong})
    with pytest.raises(ValueError, match="exit_code|99 is not"):
        from_json(Failure, {"message": "a", "hint": "", "exit_code": 99})


def test_every_key_of_hooks_and_kernel_reaches_the_child() -> None:
    """A key that is read and not sent would be a promise that nobody keeps."""
    settings = Config()
    for section in (settings.hooks, settings.kernel):
        for name, value in vars(section).items():
            assert getattr(REQUEST, name) == value


def test_nothing_between_them_is_looked_up_by_text() -> None:
    """Requests and replies are records everywhere, in the tests, too."""
    root = Path(__file__).parents[2]
    loose = re.compile(r"\b(request|reply)(\[[\"']|\.get\()")
    for folder in ("ebpfwatch", "tests"):
        for file in (root / folder).rglob("*.py"):
            assert not loose.search(file.read_text()), file


def test_a_hook_for_people() -> None:
    """What the log, the page and `check` show of it."""
    shown = [(hook.has_rung, hook.name) for hook in HOOKS]
    assert shown == [
        (True, "kprobe ext4_evict_inode"),
        (True, "kprobe kmem_cache_free (shared with any_free)"),
        (False, ""),
    ]
    dear = LoadedHook("any_free", "kprobe", "f", reason="no BTF", costs="runs on every slab free")
    assert dear.why == "no BTF; it runs on every slab free"
