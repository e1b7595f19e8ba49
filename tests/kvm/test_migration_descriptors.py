"""A VM whose network came as descriptors moves to where others are given for it, and only there."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.kvm.guests.moving import Host, two_hosts
from tests.kvm.guests.processes import SECONDS, short_folder
from tests.kvm.guests.taps import own_taps
from vmm.client import ApiError
from vmm.config.info import VmState
from vmm.config.net import NetConfig
from vmm.config.requests import RestoredNetConfig
from vmm.net.tap import Tap

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

place = short_folder
TUN = "/dev/net/tun"


@pytest.fixture
def taps() -> Iterator[list[Tap]]:
    """Two taps in a network of the test's own."""
    with own_taps(2) as made:
        yield made


async def boot(source: Host, place: Path, tap: Tap) -> None:
    """Boot the guest, with a network of the caller's."""
    await source.boot(place)
    await source.client.add_net(NetConfig(id="lan", fds=tap.fds))
    await source.rounds(2)


async def test_network_goes_on_with_the_descriptors_of_the_destination(
    place: Path, taps: list[Tap]
) -> None:
    nets = (RestoredNetConfig(id="lan", fds=taps[1].fds),)
    async with two_hosts(place) as (one, other):
        await boot(one, place, taps[0])
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(other.receive, f"unix:{place}/m", net_fds=nets))
                await one.send(f"unix:{place}/m")

        await other.rounds(3)
        assert (await other.client.info()).state is VmState.RUNNING
        assert TUN in other.vmm.open_descriptors()
        await other.client.reboot()
        await other.client.delete()
        assert TUN not in other.vmm.open_descriptors()


@pytest.mark.parametrize("names", [[], ["wan"]])
async def test_destination_without_descriptors_for_a_network_leaves_the_vm_at_its_source(
    place: Path, taps: list[Tap], names: list[str]
) -> None:
    nets = tuple(RestoredNetConfig(id=name, fds=taps[1].fds) for name in names)
    said = []
    async with two_hosts(place) as (one, other):
        await boot(one, place, taps[0])

        async def receive(*, task_status: trio.TaskStatus[None]) -> None:
            url = f"unix:{place}/m"
            said.append(
                await other.refused_receive(url, net_fds=nets or None, task_status=task_status)
            )

        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                await nursery.start(receive)
                assert "refused CONFIG" in await one.refused_send(f"unix:{place}/m")

        assert "Net id lan is associated with FDs and is required; give 1 for it" in said[0]
        await one.rounds(2)
        assert TUN in one.vmm.open_descriptors()
        assert TUN not in other.vmm.open_descriptors()
        assert other.machine_resources() == []


async def test_destination_that_is_sent_too_few_descriptors_does_not_wait_for_a_vm(
    place: Path,
) -> None:
    async with two_hosts(place) as (one, _):
        body = {"receiver_url": f"unix:{place}/m", "net_fds": [{"id": "lan", "num_fds": 2}]}
        refused = await one.vmm.api("PUT", "vm.receive-migration", body)

        assert refused.status == 400
        assert "net_fds says 2 descriptors in all (num_fds), and 0 were sent" in str(refused.json)
        with pytest.raises(ApiError) as caught:
            await one.client.migration()
        assert caught.value.status == 404
