"""VMM processes between which a guest moves that checks its memory all the time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.kvm.guests import programs
from tests.kvm.guests.image import RESULTS, write_kernel
from tests.kvm.guests.processes import SECONDS, machine, running
from vmm.client import ApiError, AsyncClient
from vmm.config.document import parse_object
from vmm.config.info import MigrationPhase
from vmm.config.requests import ReceiveMigrationData, SendMigrationData
from vmm.config.vm import VmConfig
from vmm.testing.process import VmmProcess

READY = "vm:migration-receive-ready"
PATTERN = 0x80_0000
PATTERN_PAGES = 256


def checks_memory(pages: int, at: int = PATTERN) -> str:
    """A guest that keeps a number in so many pages and counts it up round after round.

    It says "." for a round that was right, "!" for a page that was not as it was left.
    """
    return f"""
        xor %ebx, %ebx
    1:  mov ${at}, %edi
        mov ${pages}, %ecx
    2:  cmp %ebx, (%edi)
        jne 8f
        cmp %ebx, 4092(%edi)
        jne 8f
        incl (%edi)
        incl 4092(%edi)
        add $4096, %edi
        loop 2b
        inc %ebx
        mov %ebx, {RESULTS}
        mov $'.', %al
        out %al, ${programs.DEBUG_PORT}
        jmp 1b
    8:  mov $'!', %al
        out %al, ${programs.DEBUG_PORT}
        jmp 8b
"""


CHECKS_MEMORY = checks_memory(PATTERN_PAGES)


class Host:
    """A VMM process, its client, and what its guest says on the debug port."""

    def __init__(self, vmm: VmmProcess, log: Path) -> None:
        self.vmm = vmm
        self.log = log
        self.client = AsyncClient(str(vmm.directory / "api.sock"))

    async def boot(self, folder: Path, source: str = CHECKS_MEMORY, **sections: object) -> None:
        """Boot the guest here."""
        kernel = write_kernel(folder, source)
        debug = {"mode": "File", "file": str(self.log)}
        config = machine(kernel, debug_console=debug, **sections)
        await self.client.create(parse_object(VmConfig, config))
        await self.client.boot()

    async def rounds(self, more: int) -> None:
        """Wait until the guest has done so many rounds more, all right."""
        before = len(self._said())
        with trio.fail_after(SECONDS):
            while len(said := self._said()) < before + more:  # noqa: ASYNC110  a file
                await trio.sleep(0.01)
        assert set(said) == {ord(".")}

    def _said(self) -> bytes:
        """What the guest has said since a VMM opened the file last; others have left holes."""
        return self.log.read_bytes().replace(b"\0", b"")

    async def check_stands(self) -> None:
        """Check that the guest does nothing for a while."""
        before = self.log.read_bytes()
        await trio.sleep(0.5)
        assert self.log.read_bytes() == before

    async def receive(self, url: str, *, task_status: trio.TaskStatus[None], **how: object) -> None:
        """Have a VM come; started once it may."""
        before = self.vmm.events().count(READY)
        async with trio.open_nursery() as nursery:
            given = {"receiver_url": url, **how}
            data = ReceiveMigrationData.model_validate(given, strict=False)
            nursery.start_soon(self.client.receive_migration, data)
            await self.vmm.wait_for_event(READY, SECONDS, after=before)
            task_status.started()

    async def refused_receive(
        self, url: str, *, task_status: trio.TaskStatus[None], **how: object
    ) -> str:
        """The same for a VM that does not come; what is said of that."""
        with pytest.raises(ExceptionGroup) as caught:
            await self.receive(url, task_status=task_status, **how)
        (error,) = caught.value.exceptions
        assert isinstance(error, ApiError)
        return str(error)

    async def refused_send(self, url: str, **how: object) -> str:
        """Have a VM go that does not; what is said of that."""
        with pytest.raises(ApiError) as caught:
            await self.send(url, **how)
        return str(caught.value)

    async def until_slowed(self) -> None:
        """Wait until the guest has to rest because it writes faster than it moves."""
        with trio.fail_after(SECONDS):
            while not await self._throttle_percent():  # noqa: ASYNC110  nobody tells
                await trio.sleep(0.01)

    async def until_memory_comes(self) -> None:
        """Wait until a VM that comes sends its memory."""
        with trio.fail_after(SECONDS):
            while (await self.client.migration()).phase is not MigrationPhase.MEMORY:  # noqa: ASYNC110  nobody tells
                await trio.sleep(0.005)

    async def _throttle_percent(self) -> int:
        try:
            return int((await self.client.migration()).throttle_percent)
        except ApiError as error:
            if error.status != 404:
                raise
            return 0  # It has not begun.

    def machine_resources(self) -> list[str]:
        """What the VMM has open that belongs to a VM."""
        return [each for each in self.vmm.open_descriptors() if "kvm" in each or "memfd" in each]

    async def send(self, url: str, **how: object) -> None:
        """Have the VM go."""
        data = SendMigrationData.model_validate({"destination_url": url, **how}, strict=False)
        await self.client.send_migration(data)


@asynccontextmanager
async def two_hosts(place: Path) -> AsyncIterator[tuple[Host, Host]]:
    """Two VMMs whose guests' debug ports write one file: it is one guest that moves."""
    async with host(place, "a") as one, host(place, "b") as other:
        yield one, other


@asynccontextmanager
async def host(place: Path, name: str) -> AsyncIterator[Host]:
    """A VMM of its own."""
    folder = place / name
    folder.mkdir()
    async with running(folder) as vmm:
        yield Host(vmm, place / "debug.log")


async def move(source: Host, destination: Host, url: str, **how: object) -> None:
    """Move the VM."""
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(destination.receive, url)
            await source.send(url, **how)
