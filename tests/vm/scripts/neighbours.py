"""In a guest: MINUTES DIRECTORY; legal work that looks like a mistake from near, kind after kind.

MINUTES are for all kinds together. Prints a line for each kind: how often it was done, how many
inodes ended meanwhile, and how many verdicts fell; a verdict is WRONG. A kind that this kernel has
not is "absent", with the reason.
"""

import ctypes
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
import time
import urllib.request

#: Advice about how a file went, no accusation.
LEGAL = ("concurrent_unlink", "freed_in_reclaim")

libc = ctypes.CDLL(None, use_errno=True)
top = sys.argv[2] if len(sys.argv) > 2 else ""


class Absent(Exception):
    """This kernel or this image has not what the work needs."""


def run(*words):
    """Raises ``Absent`` with what the command said."""
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise Absent(f"{words[0]}: {(done.stderr or done.stdout).strip()[:120]}")


def touch(path):
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))


def reclaim(what=2):
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write(str(what))


def fresh(name):
    path = f"{top}/{name}"
    shutil.rmtree(path, ignore_errors=True)
    os.mkdir(path)
    return path


def deep_trees():
    """Reclaim from the leaves up: each directory's dentry is killed by its last child's end."""
    path = fresh("deep")
    for _ in range(40):
        path += "/d"
        os.mkdir(path)
        for i in range(5):
            touch(f"{path}/{i}")
    os.sync()
    while True:
        for _ in os.walk(f"{top}/deep"):
            pass
        reclaim()
        yield


def renames():
    """Across directories, over existing names, exchanged; rmdir of what became empty."""
    path = fresh("renames")
    while True:
        for side in "ab":
            os.makedirs(f"{path}/{side}", exist_ok=True)
        for i in range(50):
            touch(f"{path}/a/{i}")
            touch(f"{path}/b/{i}")
            os.rename(f"{path}/a/{i}", f"{path}/b/{i}")
        os.rename(f"{path}/b", f"{path}/a")
        shutil.rmtree(f"{path}/a")
        yield


def dying_processes():
    """d_invalidate() of /proc/PID when the process is reaped, with descriptors of it open."""
    while True:
        child = subprocess.Popen(["sleep", "0.05"])
        held = os.open(f"/proc/{child.pid}/task", os.O_RDONLY)
        for _ in os.walk(f"/proc/{child.pid}/task"):
            pass
        child.wait()
        os.close(held)
        yield


def invalidated_mounts():
    """rmdir of a directory that is a mount point in another namespace: d_invalidate() drops it."""
    path = fresh("mounted")
    while True:
        os.makedirs(f"{path}/point/below", exist_ok=True)
        script = (
            f"mount -t tmpfs none {path}/point/below && : >{path}/point/below/x && echo && read x"
        )
        words = ["unshare", "-m", "--propagation", "private", "sh", "-c", script]
        pipe = subprocess.PIPE
        with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe) as other:
            if not other.stdout.readline():
                raise Absent(other.stderr.read().decode()[:120])
            os.rmdir(f"{path}/point/below")
            os.rmdir(f"{path}/point")
            reclaim()
            other.communicate(b"\n")
        yield


def fuse():
    """A FUSE filesystem whose names are never valid for long: each lookup drops the dentry."""
    if not os.path.exists("/dev/fuse"):
        raise Absent("no /dev/fuse")
    path = fresh("fuse")
    server = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"none", path.encode(), b"fuse", 0, options):
        raise Absent(f"mount: {os.strerror(ctypes.get_errno())}")
    threading.Thread(target=serve_fuse, args=(server,), daemon=True).start()
    try:
        while True:
            for i in range(20):
                os.stat(f"{path}/{i}")
                os.listdir(path)
            reclaim()
            yield
    finally:
        libc.umount2(path.encode(), 2)
        os.close(server)


def serve_fuse(server):
    """FUSE 7.19: each LOOKUP gives another inode, so that the dentry of the old one is dropped."""
    attribute = struct.Struct("<QQQQQQIIIIIIIIII")
    serial = 1000
    while True:
        try:
            request = os.read(server, 1 << 17)
        except OSError:
            return
        _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
        mode = 0o40755 if node == 1 else 0o100644
        answer, error = b"", 0
        if opcode == 26:  # INIT: major, minor, readahead, flags, background, congestion, max_write
            answer = struct.pack("<IIIIHHI", 7, 19, 0, 0, 12, 9, 4096)
        elif opcode == 1:  # LOOKUP: node, generation, valid for 0 s
            serial += 1
            answer = struct.pack("<QQQQII", serial, 0, 0, 0, 0, 0)
            answer += attribute.pack(serial, 0, 0, 0, 0, 0, 0, 0, 0, 0o100644, 1, 0, 0, 0, 512, 0)
        elif opcode == 3:  # GETATTR
            answer = struct.pack("<QII", 0, 0, 0)
            answer += attribute.pack(node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 512, 0)
        elif opcode == 27:  # OPENDIR
            answer = struct.pack("<QII", 1, 0, 0)
        elif opcode in (2, 42):  # FORGET, BATCH_FORGET: no answer
            continue
        elif opcode not in (28, 29):  # READDIR: empty; RELEASEDIR
            error = -38
        try:
            os.write(server, struct.pack("<IiQ", 16 + len(answer), error, unique) + answer)
        except OSError:
            continue


def overlay():
    """Copies up, whiteouts, and the whole tree dropped by its unmount."""
    path = fresh("overlay")
    while True:
        for part in ("lower/d", "upper", "work", "merged"):
            os.makedirs(f"{path}/{part}", exist_ok=True)
        for i in range(30):
            touch(f"{path}/lower/d/{i}")
        options = f"lowerdir={path}/lower,upperdir={path}/upper,workdir={path}/work"
        run("mount", "-t", "overlay", "none", "-o", options, f"{path}/merged")
        for i in range(20):
            with open(f"{path}/merged/d/{i}", "a") as file:
                file.write("x")
        shutil.rmtree(f"{path}/merged/d")
        run("umount", f"{path}/merged")
        shutil.rmtree(path)
        yield


def handles():
    """open_by_handle_at(), as a server of NFS does: dentries without a parent, found again."""
    path = fresh("handles")
    made = []
    mount = os.open(top, os.O_RDONLY)
    for i in range(30):
        os.makedirs(f"{path}/{i}/deep")
        touch(f"{path}/{i}/deep/file")
        handle = ctypes.create_string_buffer(struct.pack("<Ii", 128, 0), 136)
        name = f"{path}/{i}/deep/file".encode()
        if libc.name_to_handle_at(-100, name, handle, ctypes.byref(ctypes.c_int()), 0):
            raise Absent(f"name_to_handle_at: {os.strerror(ctypes.get_errno())}")
        made.append(handle)
    os.sync()
    while True:
        reclaim()
        for handle in made:
            file = libc.open_by_handle_at(mount, handle, os.O_RDONLY)
            if file < 0:
                raise Absent(f"open_by_handle_at: {os.strerror(ctypes.get_errno())}")
            os.close(file)
        yield


def unnamed_files():
    """O_TMPFILE: without a link from the start, sometimes given a name at last."""
    path = fresh("unnamed")
    while True:
        for i in range(20):
            file = os.open(path, os.O_TMPFILE | os.O_RDWR, 0o600)
            os.write(file, b"x")
            if i % 4 == 0:
                source, name = f"/proc/self/fd/{file}".encode(), f"{path}/{i}".encode()
                if libc.linkat(-100, source, -100, name, 0x400):  # os.link() would call link(2)
                    raise Absent(f"linkat: {os.strerror(ctypes.get_errno())}")
                os.unlink(name)
            os.close(file)
        yield


def hard_links():
    """One inode with 50 names, which go one by one, some of them while it is open."""
    path = fresh("links")
    while True:
        file = os.open(f"{path}/0", os.O_CREAT | os.O_RDWR)
        for i in range(1, 50):
            os.link(f"{path}/0", f"{path}/{i}")
        for i in range(25):
            os.unlink(f"{path}/{i}")
        reclaim()
        os.close(file)
        for i in range(25, 50):
            os.unlink(f"{path}/{i}")
        yield


def held_directories():
    """rmdir of a directory that is open, and is somebody's working directory."""
    path = fresh("held")
    while True:
        os.mkdir(f"{path}/d")
        held = os.open(f"{path}/d", os.O_RDONLY)
        os.chdir(f"{path}/d")
        os.rmdir(f"{path}/d")
        reclaim()
        os.listdir(held)
        os.chdir("/")
        os.close(held)
        yield


def held_files():
    """Deleted while open for reading and writing and mapped, then closed."""
    import mmap

    path = fresh("open")
    while True:
        with open(f"{path}/f", "w+b") as file:
            file.write(b"x" * 4096)
            file.flush()
            with mmap.mmap(file.fileno(), 4096) as memory:
                os.unlink(f"{path}/f")
                reclaim()
                memory[0] = 1
        yield


def bind_mounts():
    """Mounted over and over, with files held below."""
    path = fresh("bind")
    for part in "ab":
        os.mkdir(f"{path}/{part}")
    while True:
        run("mount", "--bind", f"{path}/a", f"{path}/b")
        with open(f"{path}/b/f", "w"):
            run("umount", "-l", f"{path}/b")
        os.unlink(f"{path}/a/f")
        yield


def small_ext4(path, *features):
    with open(f"{path}.img", "wb") as file:
        file.truncate(32 << 20)
    run("mke2fs", "-q", "-F", "-t", "ext4", *features, f"{path}.img")


def unmounts():
    """An ext4 unmounted with thousands of cached inodes, some of them deleted and still open."""
    path = fresh("unmounts")
    small_ext4(f"{top}/small")
    while True:
        run("mount", "-o", "loop", f"{top}/small.img", path)
        for i in range(300):
            touch(f"{path}/{i}")
        file = os.open(f"{path}/0", os.O_RDONLY)
        for i in range(100):
            os.unlink(f"{path}/{i}")
        run("umount", "-l", path)
        os.close(file)
        # The loop device lets go of its file a moment after the last close.
        for _ in range(50):
            if not subprocess.run(
                ["losetup", "-j", f"{top}/small.img"], capture_output=True
            ).stdout:
                break
            time.sleep(0.1)
        yield


def quota():
    """ext4 with its quota inodes: they are never unlinked, and end at the unmount."""
    path = fresh("quota")
    small_ext4(f"{top}/quotas", "-O", "quota")
    while True:
        run("mount", "-o", "loop,usrquota", f"{top}/quotas.img", path)
        try:
            for i in range(100):
                touch(f"{path}/{i}")
                os.chown(f"{path}/{i}", i % 7, -1)
                os.unlink(f"{path}/{i}")
            reclaim()
        finally:
            run("umount", path)
        yield


def cpu_hotplug():
    """Callbacks that were queued on a CPU run on another one after it has gone."""
    path = fresh("hotplug")
    cpu = "/sys/devices/system/cpu/cpu1/online"
    if not os.path.exists(cpu):
        raise Absent(f"no {cpu}")
    while True:
        for i in range(200):
            touch(f"{path}/{i}")
        for i in range(200):
            os.unlink(f"{path}/{i}")
        with open(cpu, "r+") as file:
            file.write("0")
        time.sleep(0.3)
        with open(cpu, "r+") as file:
            file.write("1")
        yield


KINDS = (
    *(deep_trees, renames, dying_processes, invalidated_mounts, fuse, overlay, handles),
    *(unnamed_files, hard_links, held_directories, held_files, bind_mounts, unmounts, quota),
    cpu_hotplug,
)


def metrics():
    """(inodes that ended, {verdict: how often})."""
    with urllib.request.urlopen("http://127.0.0.1:9866/metrics", timeout=120) as answer:
        text = answer.read().decode()
    found = re.findall(r'findings_total{[^}]*test="false",verdict="(\w+)"} (\S+)', text)
    verdicts = {}
    for name, number in found:
        verdicts[name] = verdicts.get(name, 0) + int(float(number))
    ended = re.search(r'lifecycle_events_total{\w+="evict"} (\S+)', text)
    return int(float(ended.group(1))), verdicts


def main():
    """One kind of work after another; then what was said of it."""
    seconds = float(sys.argv[1]) * 60 / len(KINDS)
    for kind in KINDS:
        ended, before = metrics()
        times, work, why = 0, kind(), ""
        stop = time.monotonic() + seconds
        try:
            while time.monotonic() < stop:
                next(work)
                times += 1
        except Absent as absent:
            why = f"; absent: {absent}"
        work.close()
        time.sleep(3)
        now, after = metrics()
        new = {name: n - before.get(name, 0) for name, n in after.items()}
        wrong = [f"{n} {name}" for name, n in new.items() if n and name not in LEGAL]
        word = f"{kind.__name__}: {times} times, {now - ended} inodes ended"
        print(f"{word}, {', '.join(wrong) or 'no verdict'}{why}", flush=True)
        if wrong:
            print(f"WRONG: {kind.__name__}: {', '.join(wrong)}", flush=True)


if __name__ == "__main__":
    main()
