"""Taps of the caller, handed to a real VMM by the clients and by ``vmm-remote``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.kvm.guests import programs
from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.processes import SECONDS, machine, running, short_folder
from tests.kvm.guests.taps import own_taps
from vmm.client import ApiError, Client
from vmm.config.net import NetConfig
from vmm.net.interface import Interface
from vmm.net.tap import Tap

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

place = short_folder


@pytest.fixture
def taps() -> Iterator[list[Tap]]:
    """Three taps in a network of the test's own."""
    with own_taps(3) as made:
        yield made


async def test_taps_of_the_caller_become_networks_of_the_vm(place: Path, taps: list[Tap]) -> None:
    async with running(place) as vmm:
        await vmm.put("vm.create", machine(write_kernel(place, programs.SPIN)))
        await vmm.put("vm.boot")
        path = str(place / "api.sock")
        by_trio = await vmm.client.add_net(NetConfig(id="a", fds=taps[0].fds))
        by_blocking = await trio.to_thread.run_sync(
            partial(Client(path, timeout=SECONDS).add_net, NetConfig(id="b", fds=taps[1].fds))
        )
        by_remote = await trio.run_process(
            [
                *(sys.executable, "-m", "vmm.remote", "--api-socket", path, "add-net"),
                f"id=c,fd=[{taps[2].fds[0]}]",
            ],
            pass_fds=taps[2].fds,
            capture_stdout=True,
        )

        assert by_trio is not None
        assert by_blocking is not None
        assert [by_trio.id, by_blocking.id] == ["a", "b"]
        assert by_remote.stdout.startswith(b'{"id":"c","bdf":"0000:00:')
        assert "/dev/net/tun" in vmm.open_descriptors()
        assert [net.id for net in (await vmm.client.info()).config.net or ()] == ["a", "b", "c"]
    assert all(Interface(f"lan{index}").exists() for index in range(3))


async def test_descriptor_that_is_no_tap_is_refused_by_name(place: Path) -> None:
    async with running(place) as vmm:
        await vmm.put("vm.create", machine(write_kernel(place, programs.SPIN)))
        await vmm.put("vm.boot")
        with (place / "no-tap").open("w") as file, pytest.raises(ApiError) as caught:
            await vmm.client.add_net(NetConfig(id="a", fds=(file.fileno(),)))

        assert caught.value.status == 400
        assert "tap" in " ".join(caught.value.messages)
        assert not any("no-tap" in name for name in vmm.open_descriptors())
