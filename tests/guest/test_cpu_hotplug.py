"""Processors that come and go in a stock guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guest.conftest import Guest, booted
from tools.images.kernels import Kernel

pytestmark = pytest.mark.guest

CPUS = "/sys/devices/system/cpu"
NOTICED_S = 60
"""How long the guest may take to notice; even a nested host needs a tenth of it."""


async def resize(guest: Guest, count: int) -> None:
    await guest.vmm.put("vm.resize", {"desired_vcpus": count})


async def has(guest: Guest, present: str) -> None:
    """Wait until the guest's kernel knows of these processors."""
    await guest.run(f"until [ $(cat {CPUS}/present) = {present} ]; do sleep 0.1; done", NOTICED_S)


async def bring_up(guest: Guest, *numbers: int) -> None:
    """Have the guest use processors; where nothing does that for it, somebody must ask."""
    for number in numbers:
        await guest.run(f"echo 1 > {CPUS}/cpu{number}/online", NOTICED_S)


async def test_processors_that_come_are_used_and_go_and_come_again(
    place: Path, linux: Kernel, minimal: Path
) -> None:
    async with booted(place, linux, minimal, "--cpus", "boot=1,max=4") as guest:
        await has(guest, "0")
        await resize(guest, 3)
        await has(guest, "0-2")
        await bring_up(guest, 1, 2)
        assert (await guest.run(f"cat {CPUS}/online")).strip() == "0-2"
        assert (await guest.run("grep -c ^processor /proc/cpuinfo")).strip() == "3"
        assert (await guest.run("taskset -c 2 echo ran || taskset 4 echo ran")).strip() == "ran"

        await resize(guest, 1)
        await has(guest, "0")
        assert not {"vcpu1", "vcpu2"} & set(guest.vmm.threads())
        assert (await guest.vmm.info())["config"]["cpus"]["boot_vcpus"] == 1

        await resize(guest, 2)
        await has(guest, "0-1")
        await bring_up(guest, 1)
        assert (await guest.run(f"cat {CPUS}/online")).strip() == "0-1"
        assert (await guest.run("echo alive")) == "alive\n"
