"""No test may need the network: from the import of this module on, its process reaches this machine alone.

Any other address is refused as on a machine without network, so that a test that asks for one fails, or shows what the
library does there. Processes that tests fork inherit this. Those that start from nothing get it by their environment,
as far as they heed proxies.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
from typing import Any

# Nobody listens on port 9.
PROXIES = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}
LOCAL_NAMES = ("localhost", socket.gethostname())


def _is_local(host: object) -> bool:
    name = os.fsdecode(host) if isinstance(host, (bytes, str)) else ""
    if not name or name in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.getaddrinfo" and not _is_local(arguments[0]):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        if isinstance(address, tuple) and not _is_local(address[0]):
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))


os.environ.update(PROXIES, no_proxy="localhost,127.0.0.1")
sys.addaudithook(_refuse)
