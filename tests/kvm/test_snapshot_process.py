"""Snapshots over the API and on the command line of a real VMM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.kvm.guests import programs
from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.processes import SECONDS, machine, running, short_folder
from tests.kvm.guests.taps import own_taps
from vmm.config.net import NetConfig
from vmm.config.requests import RestoreConfig, RestoredNetConfig
from vmm.net.tap import Tap
from vmm.testing.process import VmmProcess

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

place = short_folder


@pytest.fixture
def taps() -> Iterator[list[Tap]]:
    """Two taps in a network of the test's own."""
    with own_taps(2) as made:
        yield made


async def save(vmm: VmmProcess, folder: Path) -> str:
    """Boot a VM, and write it to a new directory; the directory's URL."""
    await trio.Path(folder).mkdir()
    await vmm.put("vm.create", machine(write_kernel(folder.parent, programs.SPIN)))
    await vmm.put("vm.boot")
    return f"file://{folder}"


async def test_restored_vm_has_its_network_on_a_tap_that_was_sent(
    place: Path, taps: list[Tap]
) -> None:
    async with running(place) as vmm:
        url = await save(vmm, place / "one")
        await vmm.client.add_net(NetConfig(id="lan", fds=taps[0].fds))
        await vmm.put("vm.pause")
        await vmm.put("vm.snapshot", {"destination_url": url})
        await vmm.put("vm.delete")
        assert "/dev/net/tun" not in vmm.open_descriptors()

        without = await vmm.api("PUT", "vm.restore", {"source_url": url})
        assert without.status == 400
        assert "Net id lan is associated with FDs and is required" in str(without.json)
        nets = (RestoredNetConfig(id="lan", fds=taps[1].fds),)
        await vmm.client.restore(RestoreConfig(source_url=url, net_fds=nets, resume=True))

        assert (await vmm.info())["state"] == "Running"
        assert "/dev/net/tun" in vmm.open_descriptors()
        await vmm.put("vm.delete")
        assert "/dev/net/tun" not in vmm.open_descriptors()


async def test_each_request_in_the_wrong_state_has_its_documented_status(place: Path) -> None:
    async with running(place) as vmm:
        body = {"destination_url": f"file://{place}/one"}
        assert (await vmm.api("PUT", "vm.snapshot", body)).status == 404
        url = await save(vmm, place / "one")
        assert (await vmm.api("PUT", "vm.snapshot", body)).status == 405
        assert (await vmm.api("PUT", "vm.restore", {"source_url": url})).status == 404
        await vmm.put("vm.pause")
        await vmm.put("vm.snapshot", body)
        assert (await vmm.api("PUT", "vm.snapshot", body)).status == 500
        await vmm.put("vm.delete")
        bad = {"source_url": url, "prefault": True, "memory_restore_mode": "OnDemand"}
        assert (await vmm.api("PUT", "vm.restore", bad)).status == 400
        await vmm.put("vm.restore", {"source_url": url})
        assert (await vmm.info())["state"] == "Paused"


async def test_command_line_goes_on_from_a_snapshot(place: Path) -> None:
    async with running(place) as vmm:
        url = await save(vmm, place / "one")
        await vmm.put("vm.pause")
        await vmm.put("vm.snapshot", {"destination_url": url})

    async with running(place, "--restore", f"source_url={url},resume=on") as vmm:
        await vmm.wait_for_state("Running", SECONDS)

    async with running(place, "--restore", f"source_url={url},memory_restore_mode=ondemand") as vmm:
        await vmm.wait_for_state("Paused", SECONDS)
        await vmm.put("vm.resume")


async def test_command_line_says_why_it_cannot_restore_and_fails(place: Path) -> None:
    async with VmmProcess.start(place, "--restore", f"source_url=file://{place}") as vmm:
        assert await vmm.wait(SECONDS) == 1
        assert b"Error restoring VM" in vmm.errors
        assert b"config.json" in vmm.errors
