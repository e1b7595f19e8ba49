"""Sizes asked for over the API, in every state and beyond every limit: refused in clear words, or
done; the VM and the VMM go on.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from tests.kvm.guests import programs
from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.processes import SECONDS, machine, running, short_folder, wait_for_event
from vmm.testing.process import VmmProcess

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

place = short_folder

MIB = 1 << 20
BLOCK = 128 * MIB


def config(place: Path) -> dict[str, object]:
    """A VM that may have more of everything, whose guest knows nothing of that."""
    image = place / "disk.raw"
    image.write_bytes(bytes(MIB))
    return machine(
        write_kernel(place, programs.HALT),
        cpus={"boot_vcpus": 1, "max_vcpus": 2},
        memory={"size": 64 * MIB, "hotplug_size": BLOCK},
        balloon={"size": 0},
        disks=[{"path": str(image), "image_type": "Raw", "id": "disk"}],
    )


BEYOND: list[tuple[str, dict[str, object], int, str]] = [
    ("vm.resize", {"desired_vcpus": 0}, 400, "give at least 1"),
    ("vm.resize", {"desired_vcpus": 3}, 400, "max_vcpus"),
    ("vm.resize", {"desired_vcpus": 1 << 32}, 400, "give at most"),
    ("vm.resize", {"desired_ram": 0}, 400, "page size"),
    ("vm.resize", {"desired_ram": 64 * MIB + 1}, 400, "page size"),
    ("vm.resize", {"desired_ram": -1}, 400, "give at least 0"),
    ("vm.resize", {"desired_balloon": 64 * MIB}, 400, "balloon"),
    ("vm.resize", {"desired_balloon": 1 << 64}, 400, "give at most"),
    ("vm.resize-zone", {"id": "none", "desired_ram": MIB}, 404, "none"),
    ("vm.resize-disk", {"id": "none", "desired_size": MIB}, 404, "none"),
]
"""What no state allows, in a running VM; with the status and a word of the refusal."""


async def refused(vmm: VmmProcess, name: str, body: object) -> tuple[int, str]:
    reply = await vmm.api("PUT", name, body)
    return reply.status, " | ".join(json.loads(reply.body)) if reply.body else ""


async def test_sizes_beyond_the_limits_are_refused_in_each_state_and_change_nothing(
    place: Path,
) -> None:
    async with running(place) as vmm:
        for name, body, _, _ in BEYOND:
            assert (await refused(vmm, name, body))[0] in (400, 404)
        await vmm.put("vm.create", config(place))
        await vmm.put("vm.boot")
        for state, request in (("Running", "vm.pause"), ("Paused", "vm.resume")):
            before = (await vmm.info())["config"]
            for name, body, status, words in BEYOND:
                got, text = await refused(vmm, name, body)
                assert (got, words in text) == (status, True), (state, name, body, text)
            info = await vmm.info()
            assert (info["state"], info["config"]) == (state, before)
            await vmm.put(request)


async def test_sizes_of_a_paused_vm_are_taken_and_those_that_a_guest_ignores_wait(
    place: Path,
) -> None:
    async with running(place) as vmm:
        await vmm.put("vm.create", config(place))
        await vmm.put("vm.boot")
        await vmm.put("vm.pause")

        sizes = {"desired_vcpus": 2, "desired_ram": 64 * MIB + BLOCK, "desired_balloon": MIB}
        await vmm.put("vm.resize", sizes)
        await vmm.put("vm.resize-disk", {"id": "disk", "desired_size": 2 * MIB})
        await vmm.put("vm.resume")

        info = await vmm.info()
        assert info["state"] == "Running"
        assert info["config"]["cpus"]["boot_vcpus"] == 2
        assert info["config"]["memory"]["size"] == 64 * MIB + BLOCK
        assert (place / "disk.raw").stat().st_size == 2 * MIB
        # This guest never answers: what it was asked back stays, and is asked for once.
        await vmm.put("vm.resize", {"desired_vcpus": 1})
        status, text = await refused(vmm, "vm.resize", {"desired_vcpus": 2})
        assert (status, "has not given back" in text) == (429, True), text
        await vmm.put("vm.reboot")
        await vmm.put("vm.resize", {"desired_vcpus": 2})


async def test_size_of_a_created_vm_is_there_at_its_boot_and_one_during_a_reboot_after_it(
    place: Path,
) -> None:
    async with running(place) as vmm:
        await vmm.put("vm.create", config(place))
        await vmm.put("vm.resize", {"desired_vcpus": 2, "desired_ram": 32 * MIB})
        status, _ = await refused(vmm, "vm.resize-disk", {"id": "disk", "desired_size": MIB})
        assert status == 405
        await vmm.put("vm.boot")
        assert (await vmm.info())["memory_actual_size"] == 32 * MIB

        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(vmm.put, "vm.reboot")
                await wait_for_event(vmm, "vm:rebooting")
                await vmm.put("vm.resize", {"desired_ram": 32 * MIB + BLOCK})

        assert (await vmm.info())["config"]["memory"]["size"] == 32 * MIB + BLOCK
        assert vmm.events().index("vm:rebooted") < vmm.events().index(
            "vm:resized", vmm.events().index("vm:rebooting")
        )
