"""When a certificate expires: the one thing of it that an alert needs.

The ssl module of Python tells that of a peer's certificate only.  X.509 (RFC 5280, 4.1) is nested
DER, and the date is the second half of the fifth or fourth part of its first part.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import re

__all__ = ["expiry"]

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_VERSION = 0xA0
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18


def expiry(pem: bytes) -> float:
    """Seconds since the epoch of the first certificate's notAfter; raises ``ValueError``."""
    found = _PEM.search(pem)
    if found is None:
        raise ValueError("no certificate")
    try:
        der = base64.b64decode(found[1], validate=False)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    try:
        (_, certificate), *_ = _parts(der)
        (_, signed), *_ = _parts(certificate)
        fields = [(tag, body) for tag, body in _parts(signed) if tag != _VERSION]
        _, validity = fields[3]  # after serialNumber, signature, issuer
        _, (tag, text) = _parts(validity)
    except IndexError:
        raise ValueError("no certificate") from None
    return _time(tag, text.decode("ascii"))


def _time(tag: int, text: str) -> float:
    if tag == _UTC_TIME:  # RFC 5280, 4.1.2.5.1: two digits of the year, 50 to 99 are the 1900s
        text = ("19" if text >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("no date")
    found = re.fullmatch(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z", text)
    if found is None:
        raise ValueError("no date")
    # Not by strptime(), which would bring in a megabyte of modules.
    year, month, day, hour, minute, second = map(int, found.groups())
    return datetime.datetime(
        year, month, day, hour, minute, second, tzinfo=datetime.timezone.utc
    ).timestamp()


def _parts(der: bytes) -> list[tuple[int, bytes]]:
    """The elements that lie one after the other in there, with their tags."""
    parts = []
    while der:
        if len(der) < 2:
            raise ValueError("cut off")
        tag, length, start = der[0], der[1], 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(der[2:start], "big")
        if start + length > len(der):
            raise ValueError("cut off")
        parts.append((tag, der[start : start + length]))
        der = der[start + length :]
    return parts
