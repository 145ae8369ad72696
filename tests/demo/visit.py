"""A page in a browser, and what goes wrong on it."""

from __future__ import annotations

from typing import Any


class Visit:
    """A page, and what went wrong on it.

    Attributes:
        page: playwright's.
        complaints: errors of its console, exceptions, and requests to anybody but this machine.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._see)

    def _hear(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def _see(self, request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            self.complaints.append(f"a request to {request.url}")
