"""The kernels of the guests: Debian's, those that somebody brought (docs/vm.md), or any image.

Debian's packages are fetched through a private apt directory (their signatures are checked), and
only unpacked.  A kernel whose disk drivers are modules gets an initramfs of busybox and those.
"""

from __future__ import annotations

import dataclasses
import gzip
import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.vm.store import CACHE, fingerprint, locked, making

__all__ = [
    "DEBIAN",
    "ROOT_IN_MEMORY",
    "Kernel",
    "absent",
    "amd64",
    "apt_get",
    "brought",
    "build_modules",
    "copy_modules",
    "detached_btf",
    "fetch",
    "kernel",
    "names",
    "page_kib",
    "unpacked_image",
]

#: A directory for each kernel that no package holds; docs/vm.md says what belongs in it.
BROUGHT = Path(os.environ.get("KERNELS_DIR") or CACHE / "brought")
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"

#: name -> suite and flavour.  The cloud flavours have ext4 built in, the others as a module; "rt"
#: is PREEMPT_RT, "16k" has pages of 16 KiB.
DEBIAN = {
    "5.10": ("bullseye", "cloud-arm64"),
    "6.1": ("bookworm", "cloud-arm64"),
    "6.1-generic": ("bookworm", "arm64"),
    "6.12": ("trixie", "cloud-arm64"),
    "6.12-generic": ("trixie", "arm64"),
    "6.12-rt": ("trixie", "rt-arm64"),
    "6.12-16k": ("trixie", "arm64-16k"),
}

#: By Debian's name of an architecture: the kernel's, and that of the compiler.
_COMPILERS = {"arm64": ("arm64", "aarch64-linux-gnu"), "amd64": ("x86", "x86_64-linux-gnu")}

#: On the command line: the root file system is copied to memory, so that ext4 can be unloaded.
ROOT_IN_MEMORY = "root_in_memory"

_INIT = f"""\
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs none /dev
for module in $(/bin/busybox cat /modules); do /bin/busybox insmod /$module; done
tries=0
until /bin/busybox mount -t ext4 /dev/vda /root 2>/dev/null; do
    tries=$((tries + 1)); [ $tries -lt 100 ] || exec /bin/busybox sh
    /bin/busybox sleep 0.1
done
/bin/busybox mount -t proc none /proc
if /bin/busybox grep -q {ROOT_IN_MEMORY} /proc/cmdline; then
    /bin/busybox mount -t tmpfs -o size=75% none /memory
    /bin/busybox cp -a /root/. /memory
    /bin/busybox umount /root
    /bin/busybox mount --move /memory /root
fi
/bin/busybox umount /proc
exec /bin/busybox switch_root /root /sbin/init
"""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What QEMU and kbuild need; ``headers`` and ``initrd`` may be None."""

    name: str
    release: str
    image: Path
    headers: Path | None = None
    initrd: Path | None = None
    #: What kbuild's own arm64 programs run on, through qemu-user.
    sysroot: Path | None = None
    #: BCC in the guest compiles against the headers: the kernel has no BTF.
    needs_headers: bool = False
    arch: str = "arm64"


def names() -> tuple[str, ...]:
    """All kernels of the matrix; 4.19 belongs to it whether or not somebody brought one."""
    return tuple(dict.fromkeys(("4.19", *brought(), *DEBIAN)))


def brought() -> tuple[str, ...]:
    """The names of the kernels in ``BROUGHT``."""
    return tuple(sorted(d.name for d in BROUGHT.glob("*") if _image(d) and d.name not in DEBIAN))


def absent(name: str) -> str:
    """Why there is no kernel of this name; "" if there is one, or it can be fetched."""
    if "/" in name:
        return "" if Path(name).exists() else f"no kernel image {name}"
    if name in DEBIAN or _image(BROUGHT / name):
        return ""
    return (
        f"no kernel {name} is in KERNELS_DIR (docs/vm.md says what belongs there), and Debian's are"
        f" {', '.join(DEBIAN)}"
    )


def kernel(name: str) -> Kernel:
    """A kernel by name or by an image's path, made ready; ``SystemExit`` says what is missing."""
    missing = absent(name)
    if missing:
        raise SystemExit(f"{missing}; KERNELS_DIR is {BROUGHT}")
    if "/" in name:
        build = os.environ.get("KERNEL_HEADERS")
        return _any_image("", Path(name), Path(build) if build else None)
    if name in DEBIAN:
        return _debian(name, *DEBIAN[name])
    directory = BROUGHT / name
    image, initrd = _image(directory), directory / "initrd"
    assert image is not None
    found = _any_image(name, image, directory / "headers")
    return dataclasses.replace(found, initrd=initrd if initrd.exists() else None)


def _image(directory: Path) -> Path | None:
    return next((p for p in (directory / "Image.gz", directory / "Image") if p.exists()), None)


def _any_image(name: str, image: Path, headers: Path | None) -> Kernel:
    """BCC needs the headers, unless the kernel was configured to carry BTF."""
    found = re.search(rb"Linux version (\S+)", unpacked_image(image))
    release = found.group(1).decode() if found else "unknown"
    if headers is None or not (headers / "Makefile").exists():
        return Kernel(name or release, release, image)
    btf = "CONFIG_DEBUG_INFO_BTF=y" in (headers / ".config").read_text()
    return Kernel(name or release, release, image, headers, needs_headers=not btf)


def page_kib(image: Path) -> int:
    """The size of this kernel's pages, by bits 1 and 2 of the flags in its image's header.

    Documentation/arch/arm64/booting.rst; they say 0 before Linux 4.6.
    """
    flags = int.from_bytes(unpacked_image(image)[24:32], "little")
    return {2: 16, 3: 64}.get(flags >> 1 & 3, 4)


def unpacked_image(image: Path) -> bytes:
    """A kernel image as it lies in memory."""
    content = image.read_bytes()
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def amd64() -> Kernel:
    """Debian's cloud kernel for x86-64, which is in no matrix: only a dump of it is made."""
    return _debian("6.12-amd64", "trixie", "cloud-amd64", "amd64")


def _debian(name: str, suite: str, flavour: str, arch: str = "arm64") -> Kernel:
    target = CACHE / "kernels" / name
    with locked():
        if not (target / "done").exists():
            with making(target) as directory:
                wanted = [f"linux-image-{flavour}", f"linux-headers-{flavour}"]
                fetch(suite, wanted, directory, arch)
                release = next((directory / "boot").glob("vmlinuz-*")).name.partition("-")[2]
                makefile = directory / "usr/src" / f"linux-headers-{release}" / "Makefile"
                text = makefile.read_text()  # it includes Debian's common one by its full path
                makefile.write_text(text.replace(" /usr/src/", f" {target}/usr/src/"))
                (directory / "done").write_text(release)
        release = (target / "done").read_text()
        initrd = target / f"initrd-{fingerprint(_INIT)}"
        if not initrd.exists():
            roots = (target / "lib/modules", target / "usr/lib/modules")  # depmod wants one place
            modules = next(root / release for root in roots if (root / release).exists())
            _initramfs(target, modules, release, initrd)
    return Kernel(
        name,
        release,
        target / "boot" / f"vmlinuz-{release}",
        target / "usr/src" / f"linux-headers-{release}",
        initrd,
        target,
        arch=arch,
    )


def apt_get(suite: str, target: Path, arch: str = "arm64") -> list[str]:
    """The command of a private apt in ``target``/apt, its lists fetched."""
    apt = target / "apt"
    for directory in ("lists/partial", "archives/partial"):
        (apt / directory).mkdir(parents=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(f"deb [arch={arch} signed-by={KEYS}] {MIRROR} {suite} main\n")
    options = {
        "Dir::State": apt,
        "Dir::State::Lists": apt / "lists",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt,
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "APT::Architecture": arch,
        "APT::Architectures": arch,
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
    }
    command = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in options.items())]
    subprocess.run([*command, "update"], check=True, stdout=subprocess.DEVNULL)
    return command


def fetch(suite: str, packages: list[str], target: Path, arch: str = "arm64") -> None:
    """Unpack these packages, what of the kernel's they depend on, busybox and a libc."""
    command = apt_get(suite, target, arch)
    apt = target / "apt"
    words = [*command, "install", "--print-uris", "-y", "--no-install-recommends", *packages]
    listed = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    wanted = re.findall(r"/(linux-(?:image|headers|kbuild)-[^_/]+)_", listed)
    wanted = [name.replace("%2b", "+") for name in wanted] + ["busybox-static", "libc6"]
    subprocess.run([*command, "download", *wanted], check=True, cwd=apt, stdout=subprocess.DEVNULL)
    for package in sorted(apt.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, target], check=True)
    shutil.rmtree(apt)
    if not (target / "lib/ld-linux-aarch64.so.1").exists():  # merged /usr
        (target / "lib").mkdir(exist_ok=True)
        (target / "lib/ld-linux-aarch64.so.1").symlink_to("../usr/lib/ld-linux-aarch64.so.1")


def _initramfs(target: Path, modules: Path, release: str, initrd: Path) -> None:
    base = modules.parents[2]
    subprocess.run(["depmod", "-b", base, release], check=True)
    tree = target / "initramfs"
    shutil.rmtree(tree, ignore_errors=True)
    for directory in ("bin", "dev", "memory", "proc", "root"):
        (tree / directory).mkdir(parents=True)
    busybox = next(p for p in (target / "bin/busybox", target / "usr/bin/busybox") if p.exists())
    shutil.copy(busybox, tree / "bin/busybox")
    names: list[str] = []
    for wanted in ("virtio_pci", "virtio_blk", "ext4"):
        words = ["modprobe", "-d", str(base), "-S", release, "--show-depends", wanted]
        shown = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        for path in re.findall(r"^insmod (\S+)", shown, re.MULTILINE):
            if Path(path).name not in names:
                names.append(Path(path).name)
                shutil.copy(path, tree / Path(path).name)
    unpacked = []
    for name in names:
        if name.endswith(".xz"):
            subprocess.run(["xz", "-d", tree / name], check=True)
        unpacked.append(name.removesuffix(".xz"))
    (tree / "modules").write_text("\n".join(unpacked) + "\n")
    (tree / "init").write_text(_INIT)
    (tree / "init").chmod(0o755)
    with making(initrd) as partial, open(partial, "wb") as file:
        found = "\n".join(str(path.relative_to(tree)) for path in tree.rglob("*"))
        words = ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"]
        subprocess.run(words, check=True, cwd=tree, input=found.encode(), stdout=file)
    shutil.rmtree(tree)


def copy_modules(kernel: Kernel, wanted: tuple[str, ...], directory: Path) -> None:
    """Modules of the kernel's own package, unpacked; those it has built in are left out."""
    if kernel.sysroot is None:
        return
    for name in wanted:
        for found in kernel.sysroot.glob(f"**/modules/{kernel.release}/**/{name}.ko*"):
            shutil.copy(found, directory)
            if found.suffix == ".xz":
                subprocess.run(["xz", "-d", "-f", directory / found.name], check=True)


def build_modules(
    kernel: Kernel, directory: Path, names: tuple[str, ...] = ("crime", "causes", "lender")
) -> tuple[Path, ...]:
    """Cross-build modules for a kernel in this new directory."""
    shutil.copytree(Path(__file__).parent / "modules", directory)
    makefile = directory / "Makefile"
    objects = " ".join(f"{name}.o" for name in names)
    makefile.write_text(re.sub(r"(?m)^obj-m :=.*", f"obj-m := {objects}", makefile.read_text()))
    _kbuild(kernel, directory, "modules", f"{names[0]}.ko")
    return tuple(directory / f"{name}.ko" for name in names)


def detached_btf(kernel: Kernel, directory: Path) -> Path:
    """BTF of the structs that the probes read, made on another machine than it is used on.

    The 4.19 kernel has neither BTF nor debug information, so a compiler that sees its headers
    writes it, and pahole turns that into BTF; whoever has the debug package uses that instead.
    """
    directory.mkdir()
    shutil.copy(Path(__file__).parent / "types.c", directory)
    (directory / "Makefile").write_text("obj-m := types.o\n")
    built = _kbuild(kernel, directory, "KCFLAGS=-g modules", "types.ko")
    result = directory / "kernel.btf"
    subprocess.run(["pahole", f"--btf_encode_detached={result}", built], check=True)
    return result


def _own_libc(headers: Path, sysroot: Path, directory: Path) -> list[str]:
    """Debian 13's programs of kbuild want a newer libc than this machine may have: modpost gets
    its own; objtool, whose work nobody reads here, is left out.
    """
    libraries = sysroot / "usr/lib/x86_64-linux-gnu"
    loader = f"{libraries}/ld-linux-x86-64.so.2 --library-path {libraries}"
    modpost = directory / "modpost"
    modpost.write_text(f'#!/bin/sh\nexec {loader} {headers}/scripts/mod/modpost.real-lsb-64 "$@"\n')
    modpost.chmod(0o755)
    return [f"MODPOST={modpost}", "CONFIG_OBJTOOL="]


def _kbuild(kernel: Kernel, directory: Path, target: str, result: str) -> Path:
    if kernel.headers is None:
        raise SystemExit(f"no headers to build a module for {kernel.name}: set KERNEL_HEADERS")
    environment = dict(os.environ)
    arch, compiler = _COMPILERS[kernel.arch]
    words = [
        "make",
        "-s",
        "-C",
        str(kernel.headers),
        f"M={directory}",
        f"ARCH={arch}",
        f"CROSS_COMPILE={compiler}-",
        f"CC={compiler}-gcc",
        "CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT=",
        "CONFIG_DEBUG_INFO_BTF_MODULES=",  # needs pahole, and nobody reads it
        *target.split(),
    ]
    if kernel.arch == "amd64" and kernel.sysroot is not None:
        words += _own_libc(kernel.headers, kernel.sysroot, directory)
    if kernel.sysroot is not None:
        environment["QEMU_LD_PREFIX"] = str(kernel.sysroot)
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if not (directory / result).exists():
        raise SystemExit(f"cannot build {result} for {kernel.name}:\n{done.stderr[-2000:]}")
    return directory / result
