"""far.py ADDRESS FILE: gives the guest this address, keeps what is posted to port 9999."""

from __future__ import annotations

import fcntl
import http.server
import socket
import struct
import sys
from pathlib import Path

_SIOCSIFADDR = 0x8916
address, path = sys.argv[1], Path(sys.argv[2])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    # struct ifreq with a struct sockaddr_in: netdevice(7).
    ifreq = struct.pack("16sHH4s16x", b"lo:1", socket.AF_INET, 0, socket.inet_aton(address))
    fcntl.ioctl(any_socket, _SIOCSIFADDR, ifreq)


class Far(http.server.BaseHTTPRequestHandler):
    """Another machine, as far as the unit's sandbox knows."""

    def do_POST(self) -> None:
        """Keep it."""
        path.write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()


http.server.HTTPServer((address, 9999), Far).serve_forever()
