"""deploy/kubernetes: the package with the capabilities and mounts of the DaemonSet, and the plugin.

systemd-nspawn stands in for a container runtime, on this kernel.  Needs no network but Debian's.
"""

from __future__ import annotations

import json
import shutil
import subprocess
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


@pytest.mark.needs("root", "nspawn")
def test_the_daemon_runs_with_what_the_daemonset_gives(tmp_path: Path, package: Path) -> None:
    """Ready, all hooks proven or said, and a self-test that reaches the sinks."""
    root = tmp_path / "root"
    root.mkdir()
    system = unpack(root)
    shutil.copy(package, system.path / "tmp")
    system.run(
        f"apt-get -q update && apt-get -q install -y --no-install-recommends /tmp/{package.name}"
    )
    pod, container = _container()
    (rule,) = json.loads((KUBERNETES / "node-problem-detector.json").read_text())["rules"]
    script = _SCRIPT.replace("{plugin}", " ".join([rule["path"], *rule["args"]]))
    (system.path / "try.sh").write_text(script)
    added = container["securityContext"]["capabilities"]["add"]
    words = ["systemd-nspawn", "--quiet", "--directory", str(system.path), "--register=no"]
    words += ["--keep-unit", "--capability=" + ",".join(f"CAP_{name}" for name in added)]
    words += ["--system-call-filter=bpf perf_event_open @system-service"]
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"]}
    for mount in container["volumeMounts"]:
        source = paths[mount["name"]]
        if mount["name"] in ("state", "run"):  # not this machine's own
            source = str(tmp_path / mount["name"])
            Path(source).mkdir()
        if Path(source).exists():
            kind = "--bind-ro" if mount.get("readOnly") else "--bind"
            words.append(f"{kind}={source}:{mount['mountPath']}")
    # systemd-nspawn gives more by default; its --drop-capability=all would take what was added.
    only = ",".join(["-all", *(f"+{name.lower()}" for name in added)])
    words += ["/usr/bin/setpriv", f"--bounding-set={only}", "--no-new-privs", "/bin/sh", "/try.sh"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert "selftest 0\n" in done.stdout, done.stdout + done.stderr
    assert "plugin 0\n" in done.stdout and "daemon 0\n" in done.stdout, done.stdout
