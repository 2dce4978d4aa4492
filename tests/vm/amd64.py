"""`make test-postmortem`, fourth part: a dump of an x86-64 guest, audited by its own BTF.

The guest is a kernel of Debian's and busybox on an ext4; a directory is put too often there.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.vm import kernels
from tests.vm.asked import answering
from tests.vm.reading import audit, too_much

_INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
insmod /qemu_fw_cfg.ko
mkdir /dir
for i in $(seq 200); do : >/dir/$i; done
insmod /causes.ko cause=dir_put path=/dir often=146
echo 1 >/sys/module/causes/parameters/go
echo "guest: dump mistakes" >/dev/ttyS0
while :; do sleep 1000; done
"""
_SECONDS = 600


def make(kernel: kernels.Kernel, results: Path) -> Path:
    """Boot until the dump is written."""
    results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ebpfwatch-amd64-", dir="/var/tmp") as name:
        directory = Path(name)
        root = directory / "root"
        for place in ("bin", "dev", "proc", "sys", "sbin"):
            (root / place).mkdir(parents=True)
        assert kernel.sysroot is not None
        shutil.copy(next(kernel.sysroot.glob("**/bin/busybox")), root / "bin")
        for module in kernels.build_modules(kernel, directory / "modules", ("causes",)):
            shutil.copy(module, root)
        kernels.copy_modules(kernel, ("qemu_fw_cfg",), root)
        (root / "sbin/init").write_text(_INIT)
        (root / "sbin/init").chmod(0o755)
        disk = directory / "root.img"
        words = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(root), str(disk), "128M"]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        words = ["qemu-system-x86_64", "-M", "q35", "-cpu", "max", "-smp", "2", "-m", "512"]
        words += ["-nic", "none", "-display", "none", "-monitor", "none", "-no-reboot"]
        words += ["-kernel", str(kernel.image), "-initrd", str(kernel.initrd)]
        words += ["-append", "console=ttyS0 panic=-1", "-serial", f"file:{results / 'console'}"]
        words += ["-drive", f"file={disk},if=none,id=root,format=raw,cache=unsafe"]
        words += ["-device", "virtio-blk-pci,drive=root"]
        with answering(directory, results) as answers:
            with subprocess.Popen([*words, *answers.devices]) as machine:
                ends = time.monotonic() + _SECONDS
                while machine.poll() is None and "mistakes" not in answers.written:
                    if time.monotonic() > ends:
                        break
                    time.sleep(0.5)
                machine.kill()
    if "mistakes" not in answers.written:
        raise SystemExit(f"the guest left no dump: {results / 'console'}")
    return answers.written["mistakes"]


def main() -> int:
    """1 if the audit is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("/var/tmp/ebpfwatch-amd64"))
    arguments = parser.parse_args()
    kernel = kernels.amd64()
    dump = make(kernel, arguments.results)
    said, seconds, memory = audit(dump, None)
    found = {one["path"]: one["anomaly"]["missing"] for one in said["anomalies"]}
    bad = found != {"/dir": 146} or too_much(seconds, memory)
    print(
        f"{'FAIL' if bad else 'ok  '} {kernel.release} by {said['types']}: {found} in"
        f" {said['looked_at']['names']} names; {dump.stat().st_size >> 20} MiB read in"
        f" {seconds:.1f} s with {memory >> 10} MiB"
    )
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
