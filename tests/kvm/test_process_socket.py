"""The API socket of a process: who holds it, what replaces it, and what becomes of it."""

from __future__ import annotations

import os
import resource
import socket
import stat
from pathlib import Path

import pytest

from tests.kvm.guests import programs
from tests.kvm.guests.processes import (
    SECONDS,
    guest_arguments,
    run_to_its_end,
    running,
    short_folder,
)
from tests.kvm.guests.programs import SERIAL_PORT, say
from vmm.testing.api import ApiConnection
from vmm.testing.process import VmmProcess

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

place = short_folder


async def test_second_instance_is_refused_by_name_and_the_first_unharmed(place: Path) -> None:
    path = place / "api.sock"
    async with running(place) as first:
        second = await run_to_its_end("--api-socket", str(path))

        assert second.returncode == 1
        assert str(path) in second.stderr.decode()
        assert "already in use by another running instance" in second.stderr.decode()
        assert (await first.api("GET", "vmm.ping")).json["pid"] == first.process.pid
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


async def test_killed_instance_leaves_a_socket_that_the_next_one_replaces(place: Path) -> None:
    source = say("here", SERIAL_PORT) + programs.SPIN
    arguments = guest_arguments(place, source)
    async with VmmProcess.start(place, *arguments, api=True) as killed:
        await killed.wait_for("here", SECONDS)
        killed.process.kill()
        await killed.process.wait()
        assert (place / "api.sock").exists()

    async with VmmProcess.start(place, *arguments, api=True) as next_one:
        await next_one.wait_for("here", SECONDS)
        await next_one.wait_until_served(SECONDS)
        assert (await next_one.api("GET", "vmm.ping")).json["pid"] == next_one.process.pid


async def test_process_may_have_as_many_descriptors_as_its_user_lets_it(place: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        async with running(place) as vmm:
            given = resource.prlimit(vmm.process.pid, resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

    assert given == (before[1], before[1])


async def test_file_that_is_no_socket_is_left_as_it_is(place: Path) -> None:
    path = place / "api.sock"
    path.write_text("precious")

    ended = await run_to_its_end("--api-socket", f"path={path}")

    assert ended.returncode == 1
    assert f"{path}" in ended.stderr.decode()
    assert "it is not a socket" in ended.stderr.decode()
    assert path.read_text() == "precious"


async def test_inherited_listener_is_served_and_its_file_stays(place: Path) -> None:
    path = place / "inherited.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        fd = listener.fileno()
        async with VmmProcess.start(place, "--api-socket", f"fd={fd}", pass_fds=(fd,)) as vmm:
            # The kernel keeps the connection until the API is there.
            async with ApiConnection.open(str(path)) as connection:
                assert (await connection.get("vmm.ping")).json["pid"] == vmm.process.pid
            assert await vmm.stop() == 0

    assert path.exists()


@pytest.mark.parametrize("number", ["1", "77", "2147483648", "99999999999999999999"])
async def test_descriptor_that_is_no_listener_is_refused(place: Path, number: str) -> None:
    ended = await run_to_its_end("--api-socket", f"fd={number}")

    assert ended.returncode == 1
    assert number in ended.stderr.decode()
    assert b"Traceback" not in ended.stderr


@pytest.mark.parametrize("number", ["77", "99999999999999999999"])
async def test_event_monitor_on_no_descriptor_is_refused(place: Path, number: str) -> None:
    ended = await run_to_its_end("--event-monitor", f"fd={number}", "--api-socket", f"{place}/a")

    assert ended.returncode == 1
    assert number in ended.stderr.decode()
    assert b"Traceback" not in ended.stderr
