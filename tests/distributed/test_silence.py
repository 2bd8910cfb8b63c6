"""Connections whose other side falls silent break in time."""

from __future__ import annotations

import socket
from pathlib import Path

from lamina.distributed.silence import SECONDS, end_silent_connections


def test_every_connection_has_a_time_out_and_nothing_else_changes() -> None:
    with socket.create_server(("localhost", 0)) as server, socket.socketpair()[0] as other:
        with socket.create_connection(server.getsockname()) as found:
            end_silent_connections()
            assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000 * SECONDS
            found.sendall(b"still there")
            with server.accept()[0] as accepted:
                assert accepted.recv(20) == b"still there"
        assert other.fileno() >= 0


def test_nothing_is_left_open() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(50):
        end_silent_connections()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
