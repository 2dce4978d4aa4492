"""deploy/fleet/playbook.yml, by Ansible, on a fresh Debian 12: from nothing to the port that the
fleet's configuration names.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.install.container import ROOT, run, system

__all__ = ["system"]

_STEPS = """\
apt-get -q update
apt-get -q install -y --no-install-recommends ansible-core curl
sed 's/127.0.0.1:9866/127.0.0.1:9870/' config.example.yaml >/root/ours.yaml
sed 's/keep: 1000/keeep: 1000/' config.example.yaml >/root/wrong.yaml
play() {
    ansible-playbook -i host, -c local -e package="$(ls /root/*.deb)" -e config="$1" \\
        deploy/fleet/playbook.yml
}
for number in first second; do echo "== $number"; play /root/ours.yaml; done
curl -sS --fail --retry 9 --retry-connrefused http://127.0.0.1:9870/-/ready
echo "== wrong"
! play /root/wrong.yaml
cmp /root/ours.yaml /etc/ebpfwatch/config.yaml
curl -sS --fail http://127.0.0.1:9870/-/ready
"""


def test_a_playbook_from_nothing_to_the_port_of_the_fleet(system: Path, tmp_path: Path) -> None:
    """It installs and configures, and the daemon listens where it is told; again, it changes
    nothing; a configuration that is wrong is refused, and all stays as it was.
    """
    subprocess.run(["sh", str(ROOT / "deploy/build-deb.sh"), str(tmp_path)], check=True)
    shutil.copy(next(tmp_path.glob("ebpfwatch_*_all.deb")), system / "root")
    said = run(system, _STEPS, 10)
    _, first, second, wrong = (part.replace("\n", " ") for part in said.split("\n== "))
    assert "RUNNING HANDLER [Restart]" in first and "failed=0" in first
    assert "changed=0" in second and "failed=0" in second
    assert "did you mean findings.keep?" in wrong and "failed=1" in wrong
