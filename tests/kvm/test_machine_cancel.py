"""Cancelling any scope at any moment leaves no thread, descriptor, mapping or file behind.

The scopes are the machine's own, the VM owner's, and the root of the whole program. The moments are
each step of the program while it builds a machine, and each state that a guest can be in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pytest
import trio

from tests.kvm.guests import programs
from tests.kvm.guests.cancelling import cancelled_at_step
from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.leaks import check_nothing_left, holdings
from tests.kvm.guests.machines import DEADLINE_S, Owned, Wishes, configure, owned
from tests.kvm.guests.programs import SERIAL_PORT, say
from vmm.cli import Invocation
from vmm.config.disk import DiskConfig, ImageType
from vmm.config.requests import VmResize
from vmm.config.vm import VmConfig
from vmm.loop import run_vmm
from vmm.machine.commands import (
    AddDevice,
    Boot,
    Create,
    Delete,
    Nmi,
    Pause,
    PowerButton,
    Reboot,
    RemoveDevice,
    Resize,
    Resume,
)
from vmm.machine.consoles import open_consoles
from vmm.machine.vm import open_machine
from vmm.testing.api import ApiConnection
from vmm.testing.console import GuestConsole

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

TWO_CPUS = {"boot_vcpus": 2, "max_vcpus": 2}
PREFAULTED = {"size": 80 << 20, "prefault": True}
"""So much that prefaulting takes two steps, with a turn of the loop between them."""

STATES = {
    "spins": programs.SPIN,
    "halts": programs.HALT,
    "asks the loop": programs.ASK_THE_LOOP,
    "is dead": "ud2",
}
STEPS_AT_MOST = 400


class Place:
    """The files of one VMM."""

    def __init__(self, folder: Path) -> None:
        self.serial = folder / "serial.sock"
        self.api = folder / "api.sock"
        self.debug = folder / "debug"
        self.lock = folder / "api.sock.lock"

    def config(self, kernel: Path, **sections: object) -> VmConfig:
        serial = {"mode": "Socket", "socket": str(self.serial)}
        return configure(kernel, serial=serial, **sections)

    def is_clean(self) -> bool:
        return not (self.serial.exists() or self.api.exists() or self.lock.exists())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


class Level(Protocol):
    """Runs a VM until cancelled, under one of the scopes; ``started`` is set when it runs."""

    async def __call__(self, config: VmConfig, place: Place, started: trio.Event) -> None: ...


async def in_its_machine(config: VmConfig, place: Place, started: trio.Event) -> None:
    async with (
        open_consoles(config) as consoles,
        open_machine(config, consoles, Wishes()),
    ):
        started.set()
        await trio.sleep_forever()


async def in_its_owner(config: VmConfig, place: Place, started: trio.Event) -> None:
    held = Owned()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(held.owner.run)
        await held.owner.submit(Create(config))
        await held.owner.submit(Boot())
        started.set()


async def in_the_program(config: VmConfig, place: Place, started: trio.Event) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_vmm, Invocation(config=config, api_socket=str(place.api)))
        while not place.api.exists():
            await trio.lowlevel.checkpoint()
        async with ApiConnection.open(str(place.api)) as connection:
            assert (await connection.get("vm.info")).json["state"] == "Running"
        started.set()


LEVELS: dict[str, Level] = {
    "machine": in_its_machine,
    "owner": in_its_owner,
    "root": in_the_program,
}


@pytest.fixture(scope="module", autouse=True)
def _import_the_api_stack() -> None:
    """What it imports stays, and is not the VM's."""
    import vmm.api.server  # noqa: F401


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("cpus", [None, TWO_CPUS], ids=["1 vCPU", "2 vCPUs"])
async def test_cancel_at_each_step_of_building_leaves_nothing(
    tmp_path: Path, place: Place, level: str, cpus: dict[str, int] | None
) -> None:
    sections: dict[str, object] = {"memory": PREFAULTED}
    if cpus is not None:
        sections["cpus"] = cpus
    config = place.config(write_kernel(tmp_path, programs.ASK_THE_LOOP), **sections)
    before = holdings()

    for step in range(STEPS_AT_MOST):
        started = trio.Event()
        with trio.fail_after(DEADLINE_S), cancelled_at_step(step):
            await LEVELS[level](config, place, started)
        check_nothing_left(before)
        assert place.is_clean()
        if started.is_set():
            break

    assert started.is_set()
    assert step > 10


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("state", STATES)
async def test_cancel_while_the_guest_runs_leaves_nothing(
    tmp_path: Path, place: Place, level: str, state: str
) -> None:
    source = say("here", SERIAL_PORT) + STATES[state]
    config = place.config(write_kernel(tmp_path, source), cpus=TWO_CPUS)
    before = holdings()

    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            started = trio.Event()
            nursery.start_soon(LEVELS[level], config, place, started)
            await started.wait()
            async with GuestConsole.connect(place.serial) as console:
                await console.wait_for("here", DEADLINE_S)
                nursery.cancel_scope.cancel()

    check_nothing_left(before)
    assert place.is_clean()


async def test_cancel_at_each_step_of_every_command_leaves_nothing(
    tmp_path: Path, place: Place
) -> None:
    cpus = {"boot_vcpus": 2, "max_vcpus": 3}
    config = place.config(write_kernel(tmp_path, programs.ASK_THE_LOOP), cpus=cpus)
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(1 << 20))
    disk = DiskConfig(path=str(image), image_type=ImageType.RAW, id="data")
    commands = (
        *(Pause(), Nmi(), Resume(), PowerButton()),
        *(AddDevice("disks", disk), Resize(VmResize(desired_vcpus=3)), RemoveDevice("data")),
        *(Reboot(), Pause(), Delete()),
    )
    before = holdings()

    for step in range(STEPS_AT_MOST):
        done = False
        with trio.fail_after(DEADLINE_S), cancelled_at_step(step):
            held = Owned()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(held.owner.run)
                await held.do(Create(config), Boot(), *commands)
                done = True
                nursery.cancel_scope.cancel()
        check_nothing_left(before)
        assert place.is_clean()
        if done:
            break

    assert done


@pytest.mark.parametrize("level", ["owner", "root"])
async def test_cancel_while_paused_leaves_nothing(tmp_path: Path, place: Place, level: str) -> None:
    config = place.config(write_kernel(tmp_path, programs.ASK_THE_LOOP), cpus=TWO_CPUS)
    before = holdings()

    with trio.fail_after(DEADLINE_S):
        if level == "owner":
            async with owned(config) as held:
                await held.do(Pause())
        else:
            async with trio.open_nursery() as nursery:
                started = trio.Event()
                nursery.start_soon(in_the_program, config, place, started)
                await started.wait()
                async with ApiConnection.open(str(place.api)) as connection:
                    assert (await connection.put("vm.pause")).status == 204
                    nursery.cancel_scope.cancel()

    check_nothing_left(before)
    assert place.is_clean()


async def test_cancel_while_a_guest_floods_a_client_that_reads_nothing_leaves_nothing(
    tmp_path: Path, place: Place
) -> None:
    flood = f"mov ${SERIAL_PORT}, %dx; mov $'x', %al; 9: out %al, %dx; jmp 9b"
    config = place.config(write_kernel(tmp_path, flood))
    before = holdings()

    with trio.fail_after(DEADLINE_S):
        async with owned(config), await trio.open_unix_socket(str(place.serial)) as client:
            await client.receive_some(1)

    check_nothing_left(before)
    assert place.is_clean()
