"""The rule of tests/offline.py holds: in the tests' process and in those that they start."""

from __future__ import annotations

import errno
import os
import socket
import urllib.request

import pytest

from tests.launch import started

ELSEWHERE = ("192.0.2.1", 80)  # an address that is reserved for documentation


def refusals(rank: int = 0) -> None:
    with socket.socket() as client, pytest.raises(OSError, match=os.strerror(errno.ENETUNREACH)):
        client.connect(ELSEWHERE)
    with pytest.raises(socket.gaierror):
        socket.create_connection(("example.org", 80))
    with pytest.raises(OSError, match="name resolution"):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open("http://example.org")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        print("refused", flush=True)


def test_only_this_machine_is_reached(capsys):
    refusals()
    assert capsys.readouterr().out == "refused\n"


def test_nor_is_another_from_processes_of_the_tests(tmp_path):
    with started(refusals, tmp_path) as process:
        assert process.wait() == [0], process.printed()
        assert process.printed("stdout") == "refused\n"
