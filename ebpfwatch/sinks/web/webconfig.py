"""The web configuration file: TLS and users, in the format that Prometheus's own exporters read.

The format is that of prometheus/exporter-toolkit (docs/web-configuration.md), so that one file
serves all exporters of a machine. What we do not do is an unknown key, and an error: a cipher list
that is silently ignored would mislead.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from ebpfwatch.system.configfile import read
from ebpfwatch.text.strictyaml import key, one_of, shown

__all__ = ["HttpServerConfig", "TlsServerConfig", "WebConfig", "load"]

_VERSIONS = ("TLS12", "TLS13")
# Go's RequestClientCert and RequireAnyClientCert take a certificate that nobody checks; Python's
# ssl cannot, and should not.
_CLIENT_AUTH = ("NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert")
_BCRYPT = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")
_COSTS = range(4, 16)  #: 15 is some two seconds for each new password; 31 would be a day


def _users(users: dict[str, str]) -> str:
    for name, hashed in users.items():
        found = _BCRYPT.fullmatch(hashed)
        if not name or ":" in name:
            return " has a name that is empty or contains a colon"
        if not found or int(found.group(1)) not in _COSTS:
            return (
                f".{shown(name)} is no bcrypt hash of a cost from 4 to 15;"
                " try `htpasswd -nBC 10 ''`"
            )
    return ""


@dataclasses.dataclass(frozen=True)
class TlsServerConfig:
    """The certificate, and what is asked of clients; relative paths start at the file's folder."""

    cert_file: str = key("")
    key_file: str = key("")
    client_auth_type: str = key("NoClientCert", one_of(*_CLIENT_AUTH))
    client_ca_file: str = key("")
    min_version: str = key("TLS12", one_of(*_VERSIONS))
    max_version: str = key("TLS13", one_of(*_VERSIONS))
    prefer_server_cipher_suites: bool = key(True)


@dataclasses.dataclass(frozen=True)
class HttpServerConfig:
    """We speak HTTP/1 only."""

    http2: bool = key(
        False, lambda wanted: "must be false: only HTTP/1 is spoken" if wanted else ""
    )


@dataclasses.dataclass(frozen=True)
class WebConfig:
    """The file; an empty one is plain HTTP for everybody."""

    tls_server_config: TlsServerConfig = TlsServerConfig()
    http_server_config: HttpServerConfig = HttpServerConfig()
    basic_auth_users: dict[str, str] = dataclasses.field(
        default_factory=dict, metadata={"check": _users}
    )


def load(path: str) -> WebConfig:
    """Read and check; raises ``EbpfwatchError`` (exit 78). Paths in the result are absolute."""
    config = read(path, WebConfig, "give another in metrics.web_config")
    tls = config.tls_server_config
    files: dict[str, Any] = {
        name: str(Path(path).parent / getattr(tls, name))
        for name in ("cert_file", "key_file", "client_ca_file")
        if getattr(tls, name)
    }
    return dataclasses.replace(config, tls_server_config=dataclasses.replace(tls, **files))
