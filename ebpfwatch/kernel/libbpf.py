"""libbpf through ctypes: the few calls that the daemon needs, without LLVM.

``libbcc_bpf.so.0`` comes with ``python3-bpfcc`` and brings libbpf with it, linked or built in, so
one handle serves on every Debian.  Every wrapper raises ``OSError`` with the kernel's errno.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import resource
import select
import struct
from collections.abc import Collection, Iterator
from typing import Any, Callable

from ebpfwatch.errors import EbpfwatchError, Exit

__all__ = [
    "ENOTSUPP",
    "PerfReader",
    "RingReader",
    "iterate_array",
    "library",
    "map_info",
    "map_lookup",
    "map_update",
    "object_fd_by_id",
    "online_cpus",
    "possible_cpus",
    "prog_info",
    "raw_tracepoint_test_run",
]

ENOTSUPP = 524  #: the kernel's own, which no libc knows

_LIBRARY = "libbcc_bpf.so.0"


@functools.cache
def library() -> ctypes.CDLL:
    """The library; raises ``EbpfwatchError`` when the package is not installed."""
    try:
        return ctypes.CDLL(_LIBRARY, use_errno=True)
    except OSError as error:
        raise EbpfwatchError(
            f"cannot load {_LIBRARY}: {error}",
            "install it: apt-get install python3-bpfcc",
            Exit.UNAVAILABLE,
        ) from None


def _check(result: int, what: str) -> int:
    # libbpf 1.0 returns -errno; older versions return -1 and set errno.
    if result < 0:
        error = ctypes.get_errno() or -result
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


@functools.cache
def possible_cpus() -> int:
    """How many CPUs per-CPU maps have values for (/sys/devices/system/cpu/possible)."""
    with open("/sys/devices/system/cpu/possible") as file:
        last = file.read().strip().rsplit(",", 1)[-1]
    return int(last.rsplit("-", 1)[-1]) + 1


def online_cpus() -> frozenset[int]:
    """The CPUs that run just now (/sys/devices/system/cpu/online: ``0-1,3``)."""
    with open("/sys/devices/system/cpu/online") as file:
        spans = [span.partition("-") for span in file.read().strip().split(",") if span]
    return frozenset(cpu for low, _, high in spans for cpu in range(int(low), int(high or low) + 1))


def map_lookup(fd: int, key: int, size: int) -> bytes:
    """The value of an array map's element; ``size`` in bytes (for per-CPU maps: of all CPUs)."""
    value = ctypes.create_string_buffer(size)
    index = ctypes.c_uint32(key)
    _check(
        library().bpf_map_lookup_elem(fd, ctypes.byref(index), value),
        f"reading element {key} of a map",
    )
    return value.raw


def map_update(fd: int, key: int | bytes, value: bytes) -> None:
    """Set the value of a map's element; ``key`` is an array's index, or a hash's key."""
    raw = struct.pack("=I", key) if isinstance(key, int) else key
    library().bpf_map_update_elem.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_uint64,
    ]
    buffer = ctypes.create_string_buffer(value, len(value))
    _check(
        library().bpf_map_update_elem(fd, raw, buffer, 0),
        f"writing element {key!r} of a map",
    )


def iterate_array(fd: int, entries: int, size: int, chunk: int = 64) -> Iterator[memoryview]:
    """Yield each value of an array map, ``chunk`` at a time (Linux >= 5.6), else one by one.

    The buffer is reused: copy what must outlive the step.
    """
    keys = (ctypes.c_uint32 * chunk)()
    values = ctypes.create_string_buffer(chunk * size)
    view = memoryview(values).cast("B")
    batch = getattr(library(), "bpf_map_lookup_batch", None)
    position = ctypes.c_uint32()
    done = 0
    while batch is not None and done < entries:
        count = ctypes.c_uint32(min(chunk, entries - done))
        start = None if done == 0 else ctypes.byref(position)
        result = batch(fd, start, ctypes.byref(position), keys, values, ctypes.byref(count), None)
        if result < 0 and count.value == 0:
            if done:
                return
            break
        for index in range(count.value):
            yield view[index * size : (index + 1) * size]
        done += count.value
        if result < 0:
            return
    for key in range(done, entries):
        yield memoryview(map_lookup(fd, key, size))


class _ProgInfo(ctypes.Structure):
    """The head of struct bpf_prog_info (linux/bpf.h), up to recursion_misses (Linux >= 5.12)."""

    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("jited_prog_insns", ctypes.c_uint64),
        ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
        ("ifindex", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("netns_dev", ctypes.c_uint64),
        ("netns_ino", ctypes.c_uint64),
        ("nr_jited_ksyms", ctypes.c_uint32),
        ("nr_jited_func_lens", ctypes.c_uint32),
        ("jited_ksyms", ctypes.c_uint64),
        ("jited_func_lens", ctypes.c_uint64),
        ("btf_id", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("func_info", ctypes.c_uint64),
        ("nr_func_info", ctypes.c_uint32),
        ("nr_line_info", ctypes.c_uint32),
        ("line_info", ctypes.c_uint64),
        ("jited_line_info", ctypes.c_uint64),
        ("nr_jited_line_info", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("jited_line_info_rec_size", ctypes.c_uint32),
        ("nr_prog_tags", ctypes.c_uint32),
        ("prog_tags", ctypes.c_uint64),
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
        ("recursion_misses", ctypes.c_uint64),
    ]


class _MapInfo(ctypes.Structure):
    """The head of struct bpf_map_info (linux/bpf.h)."""

    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    ]


def prog_info(fd: int) -> _ProgInfo:
    """What the kernel knows of a program; fields it is too old for stay 0."""
    info = _ProgInfo()
    _object_info(fd, info)
    return info


def map_info(fd: int) -> _MapInfo:
    """What the kernel knows of a map."""
    info = _MapInfo()
    _object_info(fd, info)
    return info


def _object_info(fd: int, info: ctypes.Structure) -> None:
    size = ctypes.c_uint32(ctypes.sizeof(info))
    _check(
        library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)),
        "asking for a BPF object's info",
    )


def object_fd_by_id(kind: str, identifier: int) -> int:
    """A new fd of the loaded "prog" or "map" with this id; needs CAP_SYS_ADMIN."""
    call = getattr(library(), f"bpf_{kind}_get_fd_by_id")
    return _check(call(ctypes.c_uint32(identifier)), f"opening BPF {kind} {identifier}")


class _TestRunOpts(ctypes.Structure):
    """struct bpf_test_run_opts (libbpf >= 0.3)."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    ]


def raw_tracepoint_test_run(fd: int, *arguments: int) -> int:
    """Run a raw tracepoint program once on this CPU with these arguments (Linux >= 5.10).

    Returns what the program returned. A tracepoint has at most 12 arguments; those not given are 0.
    """
    arguments += (0,) * (12 - len(arguments))
    context = struct.pack(f"{len(arguments)}Q", *(a & (2**64 - 1) for a in arguments))
    buffer = ctypes.create_string_buffer(context, len(context))
    opts = _TestRunOpts(sz=ctypes.sizeof(_TestRunOpts))
    opts.ctx_in = ctypes.addressof(buffer)
    opts.ctx_size_in = len(context)
    _check(
        library().bpf_prog_test_run_opts(fd, ctypes.byref(opts)),
        "BPF_PROG_TEST_RUN",
    )
    return int(opts.retval)


_RING_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_PERF_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
_PERF_LOST_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64)


class RingReader:
    """Reads a BPF ring buffer.

    ``sink`` gets the bytes of one record, inside a C callback: it must only copy and return.
    ``fd`` becomes readable when there is something.
    """

    def __init__(self, map_fd: int, sink: Callable[[bytes], None]) -> None:
        lib = library()
        lib.ring_buffer__new.restype = ctypes.c_void_p
        lib.ring_buffer__new.argtypes = [
            ctypes.c_int,
            _RING_CALLBACK,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        for name in ("ring_buffer__consume", "ring_buffer__epoll_fd", "ring_buffer__free"):
            getattr(lib, name).argtypes = [ctypes.c_void_p]

        def copy(_: Any, data: int, size: int) -> int:
            sink(ctypes.string_at(data, size))
            return 0

        # ctypes does not keep callbacks alive.
        self._callback = _RING_CALLBACK(copy)
        self._ring: int | None = lib.ring_buffer__new(map_fd, self._callback, None, None)
        if not self._ring:
            raise OSError(ctypes.get_errno(), "opening the ring buffer")
        self.fd = _check(lib.ring_buffer__epoll_fd(self._ring), "ring buffer epoll fd")

    def consume(self) -> int:
        """Read what is there; returns the number of records."""
        if self._ring is None:
            return 0
        return _check(library().ring_buffer__consume(self._ring), "reading the ring buffer")

    def take_lost(self) -> int:
        """Records lost on the way; a ring buffer tells the program itself, so none."""
        return 0

    def mend(self, lossy: Collection[int]) -> int:
        """Nothing: one ring for all CPUs does not mind their coming and going."""
        return 0

    def close(self) -> None:
        """Unmap the ring."""
        if self._ring is not None:
            library().ring_buffer__free(self._ring)
            self._ring = None


def _time_stamp(record: bytes) -> int:
    """``header.ns`` of probes/contract.h; a record too short for one goes first."""
    return int(struct.unpack_from("<Q", record, 8)[0]) if len(record) >= 16 else 0


class PerfReader:
    """Reads a BPF perf event array where the kernel has no ring buffer (before Linux 5.8).

    The same face as ``RingReader``; one buffer a CPU, behind one epoll fd.  What one ``consume``
    reads is delivered in the order of the records' time stamps, not CPU after CPU.  A CPU that
    goes offline takes its event out of service for good (perf_event_exit_cpu_context() in
    kernel/events/core.c), hence ``mend``.
    """

    #: One buffer, in pages: 64 KiB, or one page where that is as large.
    _PAGES = max(1, 65536 // os.sysconf("SC_PAGE_SIZE"))

    def __init__(self, map_fd: int, sink: Callable[[bytes], None]) -> None:
        lib = library()
        lib.bpf_open_perf_buffer.restype = ctypes.c_void_p
        lib.bpf_open_perf_buffer.argtypes = [
            _PERF_CALLBACK,
            _PERF_LOST_CALLBACK,
            ctypes.c_void_p,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
        ]
        lib.perf_reader_fd.argtypes = [ctypes.c_void_p]
        lib.perf_reader_free.argtypes = [ctypes.c_void_p]
        lib.perf_reader_event_read.argtypes = [ctypes.c_void_p]
        lib.perf_reader_event_read.restype = None
        self._map_fd = map_fd
        self._sink = sink
        self._batch: list[bytes] = []
        self._lost = 0

        def copy(_: Any, data: int, size: int) -> None:
            self._batch.append(ctypes.string_at(data, size))

        def lose(_: Any, count: int) -> None:
            self._lost += count

        self._callbacks = (_PERF_CALLBACK(copy), _PERF_LOST_CALLBACK(lose))
        # Buffers that `mend` maps count against this, when CAP_IPC_LOCK is gone.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY,) * 2)
        self._epoll = select.epoll()
        self._readers: dict[int, int] = {}
        for cpu in sorted(online_cpus()):
            self._open(cpu)
        self.fd = self._epoll.fileno()

    def _open(self, cpu: int) -> None:
        lib = library()
        reader = lib.bpf_open_perf_buffer(*self._callbacks, None, -1, cpu, self._PAGES)
        if not reader:
            if cpu not in online_cpus():
                return  # it has gone since we looked
            # BCC has said on stderr which call failed; by now errno is another one's.
            raise OSError(errno.EIO, f"the perf buffer of CPU {cpu} cannot be opened")
        fd = lib.perf_reader_fd(reader)
        # The new one is in place before the old one is read to its end and given up.
        map_update(self._map_fd, cpu, struct.pack("<i", fd))
        self._epoll.register(fd, select.EPOLLIN)
        self._close(cpu)
        self._readers[cpu] = reader

    def _close(self, cpu: int) -> None:
        reader = self._readers.pop(cpu, None)
        if reader is not None:
            library().perf_reader_event_read(reader)
            self._epoll.unregister(library().perf_reader_fd(reader))
            library().perf_reader_free(reader)

    def mend(self, lossy: Collection[int]) -> int:
        """A new buffer for each CPU that has come, or that has lost records; returns how many.

        Needs what opening the first ones did.  Raises ``OSError``: the old buffer is still there.
        """
        online = online_cpus()
        for cpu in [cpu for cpu in self._readers if cpu not in online]:
            self._close(cpu)
        wanted = [cpu for cpu in sorted(online) if cpu in lossy or cpu not in self._readers]
        for cpu in wanted:
            self._open(cpu)
        return len(wanted)

    def consume(self) -> int:
        """Read what is there; returns the number of records."""
        # Not perf_reader_poll(): the kernel's perf_poll() clears its readiness when asked, so a
        # second poll after our epoll says "nothing" although there is (kernel/events/core.c).
        for reader in self._readers.values():
            library().perf_reader_event_read(reader)
        batch, self._batch = self._batch, []
        batch.sort(key=_time_stamp)
        for record in batch:
            self._sink(record)
        return len(batch)

    def take_lost(self) -> int:
        """Records the kernel dropped because a buffer was full, since the last call."""
        lost, self._lost = self._lost, 0
        return lost

    def close(self) -> None:
        """Unmap the buffers."""
        for cpu in list(self._readers):
            self._close(cpu)
        self._epoll.close()
