"""A stock guest that is busy goes on while its RAM comes from a snapshot's file, page by page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from tests.guest.conftest import BOOT_S, Guest, machine, words
from tests.guest.debian import vmm_pid
from tests.guest.shell_load import disk_load, disk_rounds
from tests.guest.test_memory import huge_pages  # noqa: F401  a fixture
from tests.guest.test_snapshot import save, served, shell
from tools.images.kernels import Kernel
from vmm.testing.process import threads_of
from vmm.testing.stall import Stalled

pytestmark = pytest.mark.guest

MIB = 1 << 20
RAM, DISK, KEPT_MIB = 256 * MIB, 32 * MIB, 8
SECONDS = 180.0
ROUNDS = 2

# Kept in the guest's memory, which it copies, looks at and sums up over and over.
KEEP = (
    "head -c 4194304 /dev/urandom > /run/part; "
    f"for n in $(seq {KEPT_MIB // 4}); do echo $n; cat /run/part; done > /run/kept; "
    "md5sum /run/kept > /run/sum"
)
MEMORY_LOAD = (
    "{ ( n=0; while [ ! -e /run/stop ]; do n=$((n+1)); cp /run/kept /run/copy; "
    "cmp /run/kept /run/copy && md5sum -c /run/sum || echo $n >> /run/lost; echo $n > /run/looks; "
    "sleep 0.1; done; echo ended > /run/looked ) < /dev/null > /dev/null 2>&1 & }"
)


async def rounds(guest: Guest) -> list[int]:
    """How often the guest has looked at its disk, and at its memory."""
    seen = await guest.run("cat /run/rounds /run/looks 2>/dev/null; true")
    return [int(word) for word in seen.split()]


async def until_busy(guest: Guest, before: list[int]) -> None:
    """Wait until the guest has looked at both some more times. Raises: Stalled."""
    now: list[int] = []
    with trio.move_on_after(SECONDS):
        while len(now) < 2 or any(b < a + ROUNDS for a, b in zip(before, now, strict=True)):
            await trio.sleep(0.2)  # Nothing tells of it.
            now = await rounds(guest)
        return
    raise Stalled(f"The guest has looked {now} times, {before} before\n{guest.console.text}")


async def until_filled(guest: Guest) -> None:
    """Wait until the VMM has done with the threads that bring the pages. Raises: Stalled."""
    pid = vmm_pid(guest)
    with trio.move_on_after(SECONDS):
        while any(name.startswith("pager") for name in threads_of(pid).values()):  # noqa: ASYNC110
            await trio.sleep(0.1)  # Nothing tells of it.
        return
    raise Stalled(f"Pages are still read on demand\n{guest.vmm.transcript()}")


@pytest.mark.usefixtures("huge_pages")
@pytest.mark.parametrize(
    "backing",
    # Huge pages are mapped alike whether they are to be shared or not.
    [{}, {"hugepages": True, "shared": True}],
    ids=lambda backing: "-".join(backing) or "small",
)
async def test_busy_guest_goes_on_while_its_memory_comes(
    backing: dict[str, Any], place: Path, linux: Kernel, with_virtio: Path
) -> None:
    serial, image = place / "serial.sock", place / "disk.raw"
    image.write_bytes(bytes(DISK))
    config = machine(
        linux,
        with_virtio,
        words(then="shell"),
        serial={"mode": "Socket", "socket": str(serial)},
        cpus={"boot_vcpus": 2, "max_vcpus": 2},
        memory={"size": RAM, **backing},
        disks=[{"path": str(image), "image_type": "Raw"}],
    )
    async with served(place, "a") as vmm:
        await vmm.put("vm.create", config)
        await vmm.put("vm.boot")
        async with shell(vmm, serial, is_booting=True) as guest:
            await guest.run(KEEP, BOOT_S)
            await guest.run(disk_load(256))
            await guest.run(MEMORY_LOAD)
            await until_busy(guest, [0, 0])
            await save(vmm, place / "snapshot")

    async with served(place, "b") as vmm:
        request = {"source_url": f"file://{place}/snapshot", "memory_restore_mode": "OnDemand"}
        await vmm.put("vm.restore", {**request, "resume": True})
        async with shell(vmm, serial, is_booting=False) as guest:
            await until_busy(guest, await rounds(guest))
            await until_filled(guest)

            assert await disk_rounds(guest) > 2 * ROUNDS
            await guest.run("until [ -e /run/looked ]; do sleep 0.1; done", SECONDS)
            assert await guest.run("cat /run/lost 2>/dev/null; true") == ""
            assert "OK" in await guest.run("md5sum -c /run/sum")
            # Refused while anything is still to come.
            await save(vmm, place / "again")
