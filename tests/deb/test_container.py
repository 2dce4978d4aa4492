"""deploy/kubernetes: the package with the capabilities and mounts of the DaemonSet, and the plugin.

Mounts, a chroot and setpriv stand in for a container runtime, on this kernel: systemd-nspawn
always makes a PID namespace, and in one the daemon does not start, which is tried here, too.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deb.chroot import unpack
from tests.deb.conftest import ROOT

KUBERNETES = ROOT / "deploy/kubernetes"

#: Starts the daemon, waits until it is ready, and asks it for a self-test.
_SCRIPT = """
ebpfwatch run --config /etc/ebpfwatch/config.yaml >/tmp/log 2>&1 & daemon=$!
for _ in $(seq 300); do
    grep -q 'ready after' /tmp/log && break
    kill -0 $daemon || break
    sleep 1
done
ebpfwatch selftest --timeout 30; echo "selftest $?"
ebpfwatch status --short; echo "status $?"
{plugin}; echo "plugin $?"
kill $daemon; wait $daemon; echo "daemon $?"
cat /tmp/log
"""


def _container() -> tuple[dict[str, Any], dict[str, Any]]:
    """The pod's and the container's part of the DaemonSet."""
    body = yaml.safe_load((KUBERNETES / "daemonset.yaml").read_text())
    pod: dict[str, Any] = body["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


def test_each_mount_has_its_volume() -> None:
    """By name; the command and its directories are those of the package."""
    pod, container = _container()
    names = {mount["name"] for mount in container["volumeMounts"]}
    assert names == {volume["name"] for volume in pod["volumes"]}
    assert container["args"] == ["run", "--config", "/etc/ebpfwatch/config.yaml"]


def test_the_plugin_is_a_command_of_ours() -> None:
    """The argument list of node-problem-detector's rule."""
    from ebpfwatch.commands import parser

    body = json.loads((KUBERNETES / "node-problem-detector.json").read_text())
    (rule,) = body["rules"]
    (condition,) = body["conditions"]
    assert rule["path"] == "/usr/bin/ebpfwatch" and rule["condition"] == condition["type"]
    assert parser().parse_args(rule["args"]).npd


#: What a runtime does: /proc/sys and /sys read-only, the volumes, the capabilities and no others.
_RUNTIME = """
mount -t proc proc {root}/proc
mount --bind {root}/proc/sys {root}/proc/sys
mount -o remount,bind,ro {root}/proc/sys
mount -t sysfs -o ro sysfs {root}/sys
{mounts}
exec chroot {root} /usr/bin/setpriv --bounding-set={only} --no-new-privs /bin/sh /try.sh
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, package: Path) -> Iterator[Path]:
    """What the image of the Dockerfile holds: a Debian 12 with the package."""
    directory = tmp_path_factory.mktemp("image")
    system = unpack(directory)
    shutil.copy(package, directory / "tmp")
    system.run(
        f"apt-get -q update && apt-get -q install -y --no-install-recommends /tmp/{package.name}"
    )
    yield directory
    shutil.rmtree(directory)


def _run(root: Path, tmp_path: Path, *namespaces: str) -> subprocess.CompletedProcess[str]:
    """_SCRIPT in a chroot with the mounts and capabilities of the DaemonSet."""
    pod, container = _container()
    (rule,) = json.loads((KUBERNETES / "node-problem-detector.json").read_text())["rules"]
    plugin = " ".join([rule["path"], *rule["args"]])
    (root / "try.sh").write_text(_SCRIPT.replace("{plugin}", plugin))
    paths = {volume["name"]: Path(volume["hostPath"]["path"]) for volume in pod["volumes"]}
    mounts = []
    for mount in container["volumeMounts"]:
        source, target = paths[mount["name"]], root / mount["mountPath"][1:]
        if mount["name"] in ("state", "run"):  # not this machine's own
            source = tmp_path / mount["name"]
            source.mkdir()
        if source.is_dir():
            mounts.append(f"mkdir -p {target} 2>/dev/null || true")
        elif source.exists():
            target.touch()
        if source.exists():
            mounts.append(f"mount --bind {source} {target}")
    only = ",".join(
        [
            "-all",
            *(f"+{name.lower()}" for name in container["securityContext"]["capabilities"]["add"]),
        ]
    )
    runtime = _RUNTIME.format(root=root, mounts="\n".join(mounts), only=only)
    words = ["unshare", "--mount", "--uts", "--ipc", *namespaces, "/bin/sh", "-ec", runtime]
    return subprocess.run(words, capture_output=True, text=True, timeout=600)


@pytest.mark.needs("root")
def test_the_daemon_runs_with_what_the_daemonset_gives(root: Path, tmp_path: Path) -> None:
    """Ready, and a self-test that reaches the sinks. The plugin answers; so soon after the start
    1 is right as long as not all hooks are proven.
    """
    assert _container()[0]["hostPID"]
    done = _run(root, tmp_path)
    assert "selftest 0\n" in done.stdout, done.stdout + done.stderr
    assert re.search(r"(?m)^plugin [01]$", done.stdout), done.stdout
    assert "daemon 0\n" in done.stdout, done.stdout


@pytest.mark.needs("root")
def test_without_host_pid_it_does_not_start_and_says_why(root: Path, tmp_path: Path) -> None:
    """The same but for hostPID: a PID namespace alone is enough."""
    done = _run(root, tmp_path, "--pid", "--fork")
    assert "daemon 69\n" in done.stdout, done.stdout + done.stderr
    assert "in a PID namespace of its own" in done.stdout, done.stdout
    assert "hostPID: true" in done.stdout, done.stdout
