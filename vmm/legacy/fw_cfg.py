"""QEMU's firmware configuration device: numbered items that firmware and kernels read by ports.

A selector chooses an item, and a data port gives its bytes one after the other; past its end it
gives zeros. By DMA the guest has a piece of an item copied: that is done by this device's task,
step by step, while the vCPU that asked waits. Nothing can be written.

What is read is kept open; a snapshot keeps none of this.
Spec: QEMU, "QEMU Firmware Configuration (fw_cfg) Device".
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import trio

from vmm.errors import GuestError, HostError

logger = logging.getLogger(__name__)

SELECTOR, DATA, DMA_HIGH, DMA_LOW = 0, 1, 4, 8

SIGNATURE, ID = 0x00, 0x01
KERNEL_SIZE, INITRD_SIZE = 0x08, 0x0B
KERNEL_DATA, INITRD_DATA = 0x11, 0x12
CMDLINE_SIZE, CMDLINE_DATA = 0x14, 0x15
SETUP_SIZE, SETUP_DATA = 0x17, 0x18
FILE_DIR, FIRST_FILE = 0x19, 0x20

HAS_DMA: Final = 0b11
"""Of the item ID: the ports, and DMA."""

DMA_SIGNATURE: Final = b"QEMU CFG"
DMA_ACCESS: Final = struct.Struct(">IIQ")
"""What the guest asks for: control, length, and where it goes."""

ERROR, READ, SKIP, SELECT, WRITE = 1, 2, 4, 8, 16
STEP_BYTES: Final = 256 << 10

_ENTRY = struct.Struct(">IHH56s")


class Blob(Protocol):
    """What an item holds."""

    @property
    def size(self) -> int:
        """Its length in bytes."""

    def read(self, at: int, size: int) -> bytes:
        """A piece of it, shorter where it ends. Raises: HostError."""


class Bytes(NamedTuple):
    """An item that is in memory."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, at: int, size: int) -> bytes:
        return self.data[at : at + size]


class Ram(Protocol):
    """Guest memory. Raises: GuestError outside of RAM."""

    def read(self, gpa: int, size: int) -> bytes: ...
    def write(self, gpa: int, data: bytes) -> None: ...


def directory(files: Sequence[tuple[str, Blob]]) -> bytes:
    """The item that names the others: their sizes, numbers and names."""
    entries = (
        _ENTRY.pack(blob.size, FIRST_FILE + number, 0, name.encode())
        for number, (name, blob) in enumerate(files)
    )
    return struct.pack(">I", len(files)) + b"".join(entries)


class FwCfg:
    """The IoHandler of the ports, and the task that copies."""

    def __init__(self, items: Mapping[int, Blob], ram: Ram) -> None:
        self._items = items
        self._ram = ram
        self._chosen: Blob | None = None
        self._at = 0
        self._high = 0
        self._asked, self._asks = trio.open_memory_channel[tuple[int, trio.Event]](float("inf"))

    def read(self, offset: int, size: int) -> int:
        """The next byte of the item, or the signature of DMA."""
        if offset == DATA:
            try:
                return int.from_bytes(self._take(1), "little")
            except HostError as error:
                logger.warning("An item of fw_cfg reads as 0: %s", error)
                return 0
        if offset in (DMA_HIGH, DMA_LOW):
            part = DMA_SIGNATURE[offset - DMA_HIGH : offset - DMA_HIGH + size]
            return int.from_bytes(part, "little")
        return 0

    def write(self, offset: int, size: int, value: int) -> trio.Event | None:
        """Choose an item, or begin a copy once both halves of the address are there."""
        if offset == SELECTOR and size == 2:
            self._choose(value)
        elif offset == DMA_HIGH and size == 4:
            self._high = _swapped(value)
        elif offset == DMA_LOW and size == 4:
            address, self._high = self._high << 32 | _swapped(value), 0
            done = trio.Event()
            self._asked.send_nowait((address, done))
            return done
        return None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Copy what the guest asks for, one request after the other."""
        task_status.started()
        async for address, done in self._asks:
            try:
                await self._serve(address)
            except GuestError:
                pass  # There is no RAM to say it in.
            finally:
                done.set()

    async def _serve(self, address: int) -> None:
        control, length, to = DMA_ACCESS.unpack(self._ram.read(address, DMA_ACCESS.size))
        if control & SELECT:
            self._choose(control >> 16)
        failed = bool(control & WRITE)
        if control & READ and not failed:
            failed = not await self._copy(to, length)
        elif control & SKIP:
            self._at = min(self._at + length, self._end)
        self._ram.write(address, struct.pack(">I", ERROR if failed else 0))

    async def _copy(self, to: int, length: int) -> bool:
        """Copy to guest memory; False when there is none, or the file cannot be read."""
        while length:
            size = min(length, STEP_BYTES)
            try:
                self._ram.write(to, self._take(size))
            except (GuestError, HostError):
                return False
            to, length = to + size, length - size
            await trio.lowlevel.checkpoint()
        return True

    def _choose(self, key: int) -> None:
        self._chosen, self._at = self._items.get(key), 0

    @property
    def _end(self) -> int:
        return 0 if self._chosen is None else self._chosen.size

    def _take(self, size: int) -> bytes:
        """The next bytes of the item; zeros past its end."""
        part = b"" if self._chosen is None else self._chosen.read(self._at, size)
        self._at += len(part)
        return part.ljust(size, b"\0")


def _swapped(value: int) -> int:
    """A number that the guest wrote with its highest byte first."""
    return int.from_bytes(value.to_bytes(4, "little"), "big")
