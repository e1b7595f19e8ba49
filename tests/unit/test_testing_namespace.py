"""Network namespaces of tests: what is made in one is seen there only, and goes with it."""

from __future__ import annotations

import socket
import subprocess

import pytest

from vmm.errors import HostError
from vmm.testing.namespace import held_namespace


def test_held_namespace_is_entered_by_others_and_ends_when_it_is_let_go() -> None:
    before = socket.if_nameindex()
    try:
        with held_namespace() as network:
            inside = ["nsenter", f"--net={network}", "ip"]
            subprocess.run([*inside, "link", "add", "held0", "type", "bridge"], check=True)
            assert b"held0" in subprocess.check_output([*inside, "link"])
            assert socket.if_nameindex() == before
    except HostError as error:
        pytest.skip(f"no namespace can be made here: {error}")
    assert not network.exists()
