"""A stock guest through its whole life, driven by HTTP as any client would."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.guest.conftest import BOOT_S, booted, machine, words
from tools.images.kernels import Kernel
from vmm.testing.api import ApiConnection
from vmm.testing.console import GuestConsole
from vmm.testing.process import VmmProcess

pytestmark = pytest.mark.guest


async def test_vm_lives_through_every_state_over_the_api(
    place: Path, linux: Kernel, minimal: Path
) -> None:
    serial = place / "serial.sock"
    config = machine(
        linux, minimal, words(then="shell"), serial={"mode": "Socket", "socket": str(serial)}
    )
    async with VmmProcess.start(place, api=True) as vmm:
        await vmm.wait_until_served(BOOT_S)
        idle = vmm.open_descriptors()
        await vmm.put("vm.create", config)
        assert (await vmm.info())["state"] == "Created"
        await vmm.put("vm.boot")
        async with GuestConsole.connect(serial) as console:
            await console.wait_for("GUEST-READY", BOOT_S)
            await console.run("stty -echo")
            assert await console.run("echo alive") == "alive\n"
            await check_pause(vmm, console)
            await vmm.put("vm.reboot")
            again = await console.wait_for("GUEST-READY", BOOT_S, after=len(console.text))
            assert again
        await vmm.put("vm.shutdown")
        assert (await vmm.info())["state"] == "Created"
        assert not [name for name in vmm.threads() if name.startswith("vcpu")]
        await vmm.put("vm.boot")
        assert (await vmm.info())["state"] == "Running"
        await vmm.put("vm.delete")
        assert (await vmm.api("GET", "vm.info")).status == 404
        assert vmm.open_descriptors() == idle
        assert not serial.exists()
        await vmm.put("vmm.shutdown")
        assert await vmm.wait(30) == 0


async def check_pause(vmm: VmmProcess, console: GuestConsole) -> None:
    """A paused guest prints nothing and loses nothing; its clock stands."""
    tick = "read -r up rest < /proc/uptime; echo up=$up; sleep 0.2"
    await console.type(f"seq 60 | while read -r n; do {tick}; done\n")
    await console.wait_for("up=", 30, after=len(console.text))
    await vmm.put("vm.pause")
    assert (await vmm.info())["state"] == "Paused"
    with trio.move_on_after(1.0):
        await console.wait_for("never printed", 60)
    stopped = len(console.text)
    with trio.move_on_after(3.0):
        await console.wait_for("never printed", 60)
    assert len(console.text) == stopped
    before = float(console.text.rsplit("up=", 1)[1].split()[0])
    await vmm.put("vm.resume")
    at = await console.wait_for("up=", 30, after=stopped)
    await console.wait_for("\n", 30, after=at)
    after = float(console.text[at:].split()[0])
    assert after - before < 3.0
    await console.run("true")


async def test_power_button_powers_the_guest_off(place: Path, linux: Kernel, minimal: Path) -> None:
    async with booted(place, linux, minimal) as guest:
        await guest.vmm.put("vm.power-button")

        await guest.console.wait_for("GUEST-POWEROFF", 60)
        assert await guest.vmm.wait(60) == 0
        assert guest.vmm.events()[-2:] == ["vm:deleted", "vmm:shutdown"]


async def test_reboot_inside_the_guest_reboots_it(
    place: Path, linux: Kernel, minimal: Path
) -> None:
    async with booted(place, linux, minimal) as guest:
        ready = len(guest.console.text)
        await guest.console.type("reboot -f\n")

        await guest.console.wait_for("GUEST-READY", BOOT_S, after=ready)

        assert "vm:rebooted" in guest.vmm.events()
        assert (await guest.vmm.info())["state"] == "Running"


async def test_power_off_with_no_shutdown_keeps_the_vmm(
    place: Path, linux: Kernel, minimal: Path
) -> None:
    async with booted(place, linux, minimal, "--no-shutdown") as guest:
        await guest.console.type("poweroff -f\n")

        await guest.vmm.wait_for_state("Created", 60)
        assert guest.vmm.process.returncode is None


async def test_nmi_reaches_every_vcpu(place: Path, linux: Kernel, minimal: Path) -> None:
    async with booted(place, linux, minimal, "--cpus", "boot=2") as guest:
        before = await guest.run("grep NMI: /proc/interrupts")

        await guest.vmm.put("vm.nmi")
        after = await guest.run("grep NMI: /proc/interrupts")

        counts = [[int(word) for word in text.split()[1:3]] for text in (before, after)]
        assert [now - then for then, now in zip(*counts, strict=True)] == [1, 1], after


async def test_sysrq_crash_of_the_guest_reboots_it(
    place: Path, linux: Kernel, minimal: Path
) -> None:
    async with booted(place, linux, minimal) as guest:
        ready = len(guest.console.text)
        await guest.console.type("echo c > /proc/sysrq-trigger\n")

        await guest.console.wait_for("GUEST-READY", BOOT_S, after=ready)


async def test_api_answers_while_a_guest_boots(place: Path, linux: Kernel, minimal: Path) -> None:
    serial = place / "serial.sock"
    config = machine(
        linux, minimal, words(then="wait"), serial={"mode": "Socket", "socket": str(serial)}
    )
    async with VmmProcess.start(place, api=True) as vmm:
        await vmm.wait_until_served(BOOT_S)
        await vmm.put("vm.create", config)
        answers = 0
        async with ApiConnection.open(str(place / "api.sock")) as connection:
            await vmm.put("vm.boot")
            async with GuestConsole.connect(serial) as console, trio.open_nursery() as nursery:

                async def ask() -> None:
                    nonlocal answers
                    while True:
                        assert (await connection.get("vmm.ping")).status == 200
                        assert (await connection.get("vm.info")).json["state"] == "Running"
                        answers += 1

                nursery.start_soon(ask)
                await console.wait_for("GUEST-READY", BOOT_S)
                nursery.cancel_scope.cancel()
        assert answers > 3
