"""Sockets in the file system: who may connect, from the first moment on."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from vmm.listener import listening
from vmm.migration.address import UnixAddress
from vmm.migration.destination import listen


def test_socket_has_its_mode_before_anybody_can_connect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "a.sock")
    modes = []

    class Watched(socket.socket):
        def listen(self, backlog: int = 128) -> None:
            modes.append(stat.S_IMODE(os.stat(path).st_mode))
            super().listen(backlog)

    monkeypatch.setattr(socket, "socket", Watched)
    with listening(path, "test", 0o600):
        assert modes == [0o600]


def test_socket_without_a_mode_has_that_of_the_umask(tmp_path: Path) -> None:
    path = str(tmp_path / "a.sock")
    before = os.umask(0o027)
    try:
        with listening(path, "test"):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o750
    finally:
        os.umask(before)


async def test_socket_of_a_migration_is_its_owners_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "a.sock")
    async with listen(UnixAddress(path)):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
