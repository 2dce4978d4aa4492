"""sbom.py TREE: a package's bill of materials as CycloneDX 1.5, made from the tree that is packed.

What is in the package (each file with its SHA-256; nothing is vendored) and what it runs on: the
packages of Depends, with the versions asked for, for the distribution decides which are installed.
No network, no time, no number drawn: the same tree gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

__all__ = ["bill", "main"]


def main(argv: list[str]) -> int:
    """Print the bill of the tree, whose DEBIAN/control is complete."""
    print(json.dumps(bill(Path(argv[0])), indent=1, sort_keys=True))
    return 0


def bill(tree: Path) -> dict[str, Any]:
    """The bill of an unpacked package; raises ``OSError`` or ``KeyError`` where it is none."""
    control = _fields((tree / "DEBIAN/control").read_text(encoding="utf-8"))
    name, version = control["Package"], control["Version"]
    whole = f"pkg:deb/debian/{name}@{version}?arch={control['Architecture']}"
    needs = [_dependency(words) for words in control["Depends"].split(",")]
    files = [_file(tree, path) for path in sorted(tree.rglob("*")) if _is_content(tree, path)]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": whole,
                "name": name,
                "version": version,
                "purl": whole,
                "licenses": [{"license": {"id": "GPL-2.0-only"}}],
            }
        },
        "components": [*needs, *files],
        "dependencies": [{"ref": whole, "dependsOn": sorted(need["bom-ref"] for need in needs)}],
    }


def _fields(text: str) -> dict[str, str]:
    """The fields of a control file of one paragraph, their lines joined."""
    return dict(re.findall(r"^([\w-]+):\s*(.*(?:\n[ \t].*)*)", text, re.MULTILINE))


def _dependency(words: str) -> dict[str, Any]:
    """``python3-bpfcc (>= 0.18)``; of alternatives, the first is what apt takes."""
    found = re.match(r"\s*([\w.+-]+)(?::\w+)?\s*(?:\(([^)]*)\))?", words)
    assert found is not None, words
    name, asked = found.groups()
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": f"pkg:deb/debian/{name}",
        "name": name,
        "purl": f"pkg:deb/debian/{name}",
        "scope": "required",
    }
    if asked:
        component["properties"] = [{"name": "ebpfwatch:version-asked-for", "value": asked}]
    return component


def _is_content(tree: Path, path: Path) -> bool:
    # The bill cannot hold its own sum.
    return (
        path.is_file()
        and not path.is_symlink()
        and path.relative_to(tree).parts[0] != "DEBIAN"
        and not path.name.endswith(".cdx.json")
    )


def _file(tree: Path, path: Path) -> dict[str, Any]:
    name = f"/{path.relative_to(tree)}"
    return {
        "type": "file",
        "bom-ref": f"file:{name}",
        "name": name,
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
