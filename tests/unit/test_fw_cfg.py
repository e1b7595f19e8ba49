"""QEMU's firmware configuration device: items by port and by DMA, and guests that ask nonsense."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
import trio

from tests.unit.test_config_validation import config_of
from vmm.errors import GuestError, HostError
from vmm.legacy import fw_cfg
from vmm.legacy.fw_cfg import Bytes, FwCfg, directory
from vmm.machine.fw_cfg import open_fw_cfg
from vmm.machine.memory import GuestMemory

RAM_BYTES = 1 << 20
ASK, TO = 0x100, 0x2000


class Ram:
    ram = ()

    def __init__(self) -> None:
        self.bytes = bytearray(b"\xee" * RAM_BYTES)

    def read(self, gpa: int, size: int) -> bytes:
        if gpa + size > RAM_BYTES:
            raise GuestError("outside of RAM")
        return bytes(self.bytes[gpa : gpa + size])

    def write(self, gpa: int, data: bytes) -> None:
        if gpa + len(data) > RAM_BYTES:
            raise GuestError("outside of RAM")
        self.bytes[gpa : gpa + len(data)] = data


class Guest:
    """A guest that knows the device."""

    def __init__(self, device: FwCfg, ram: Ram) -> None:
        self.device, self.ram = device, ram

    def choose(self, key: int) -> None:
        assert self.device.write(fw_cfg.SELECTOR, 2, key) is None

    def take(self, count: int) -> bytes:
        return bytes(self.device.read(fw_cfg.DATA, 1) for _ in range(count))

    async def copy(self, control: int, length: int, to: int = TO, at: int = ASK) -> int:
        """Ask for a copy, and give the control word that comes back."""
        if at + 16 <= RAM_BYTES:
            self.ram.write(at, struct.pack(">IIQ", control, length, to))
        high, low = (
            struct.unpack("<I", struct.pack(">I", each))[0] for each in divmod(at, 1 << 32)
        )
        assert self.device.write(fw_cfg.DMA_HIGH, 4, high) is None
        done = self.device.write(fw_cfg.DMA_LOW, 4, low)
        assert done is not None
        with trio.fail_after(10):
            await done.wait()
        return int.from_bytes(self.ram.bytes[at : at + 4], "big")


@asynccontextmanager
async def guest_of(device: FwCfg, ram: Ram) -> AsyncIterator[Guest]:
    async with trio.open_nursery() as nursery:
        await nursery.start(device.run)
        yield Guest(device, ram)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def small() -> AsyncIterator[Guest]:
    ram = Ram()
    async with guest_of(FwCfg({0: Bytes(b"QEMU"), 0x20: Bytes(b"0123456789")}, ram), ram) as guest:
        yield guest


async def test_item_is_read_byte_by_byte_and_zeros_follow() -> None:
    async with small() as guest:
        guest.choose(0x20)
        assert guest.take(12) == b"0123456789\0\0"
        guest.choose(0)
        assert guest.take(4) == b"QEMU"
        guest.choose(0x77)
        assert guest.take(2) == b"\0\0"


async def test_signature_of_dma_is_in_its_registers() -> None:
    async with small() as guest:
        parts = (guest.device.read(at, 4).to_bytes(4, "little") for at in (4, 8))
        assert b"".join(parts) == b"QEMU CFG"
        assert guest.device.read(2, 1) == 0


async def test_copy_chooses_skips_and_reads() -> None:
    async with small() as guest:
        assert await guest.copy(0x20 << 16 | fw_cfg.SELECT, 0) == 0
        assert await guest.copy(fw_cfg.SKIP, 3) == 0
        assert await guest.copy(fw_cfg.READ, 4) == 0
        assert guest.ram.read(TO, 5) == b"3456\xee"
        assert await guest.copy(fw_cfg.READ, 6) == 0
        assert guest.ram.read(TO, 6) == b"789\0\0\0"
        assert await guest.copy(0x20 << 16 | fw_cfg.SELECT | fw_cfg.READ, 2) == 0
        assert guest.ram.read(TO, 2) == b"01"


async def test_copy_that_cannot_be_has_its_error_bit() -> None:
    async with small() as guest:
        assert await guest.copy(fw_cfg.WRITE, 4) == fw_cfg.ERROR
        assert await guest.copy(fw_cfg.READ | fw_cfg.WRITE, 4) == fw_cfg.ERROR
        assert await guest.copy(fw_cfg.READ, 16, to=RAM_BYTES - 8) == fw_cfg.ERROR
        assert await guest.copy(fw_cfg.READ, 0xFFFF_FFFF, to=TO) == fw_cfg.ERROR
        assert await guest.copy(fw_cfg.READ, 1, to=(1 << 64) - 1) == fw_cfg.ERROR
        # And where the request itself is nowhere, nobody is told, and the device goes on.
        await guest.copy(fw_cfg.READ, 4, at=1 << 40)
        assert await guest.copy(fw_cfg.SKIP, 0xFFFF_FFFF) == 0


async def test_requests_at_once_are_each_answered() -> None:
    async with small() as guest, trio.open_nursery() as nursery:
        for number in range(8):
            control = 0x20 << 16 | fw_cfg.SELECT | fw_cfg.READ
            nursery.start_soon(guest.copy, control, 10, TO + 16 * number, ASK + 16 * number)
    for number in range(8):
        assert guest.ram.read(TO + 16 * number, 10) == b"0123456789"


def test_directory_names_each_file_with_its_size_and_number() -> None:
    data = directory([("opt/a", Bytes(b"abc")), ("opt/" + "b" * 51, Bytes(b""))])

    assert data[:4] == struct.pack(">I", 2)
    assert data[4:68] == struct.pack(">IHH", 3, 0x20, 0) + b"opt/a".ljust(56, b"\0")
    assert data[68:76] == struct.pack(">IHH", 0, 0x21, 0)
    assert data[76:].rstrip(b"\0") == b"opt/" + b"b" * 51


async def test_items_of_a_configuration_are_there(tmp_path: Path) -> None:
    kernel, file = tmp_path / "kernel", tmp_path / "file"
    # A bzImage with two sectors of setup beside the first, and its code.
    setup = bytearray(3 * 512)
    setup[0x1F1], setup[0x1FE:0x200], setup[0x202:0x206] = 2, b"\x55\xaa", b"HdrS"
    kernel.write_bytes(bytes(setup) + b"code")
    file.write_bytes(b"of a file")
    items = [{"name": "opt/f", "file": str(file)}, {"name": "opt/s", "string": "a text"}]
    payload = {"kernel": str(kernel), "initramfs": str(file), "cmdline": "quiet"}
    told = {"e820": False, "items": items}
    config = config_of(payload={**payload, "fw_cfg_config": told}).payload
    ram = Ram()
    assert config is not None
    with open_fw_cfg(config, cast("GuestMemory", ram)) as device:
        async with guest_of(device, ram) as guest:
            for key, data in (
                (fw_cfg.SETUP_SIZE, struct.pack("<I", 3 * 512)),
                (fw_cfg.KERNEL_SIZE, struct.pack("<I", 4)),
                (fw_cfg.KERNEL_DATA, b"code\0"),
                (fw_cfg.INITRD_DATA, b"of a file"),
                (fw_cfg.CMDLINE_SIZE, struct.pack("<I", 6)),
                (fw_cfg.CMDLINE_DATA, b"quiet\0"),
                (0x20, b"of a file\0"),
                (0x21, b"a text\0"),
                (fw_cfg.ID, b"\3\0\0\0"),
            ):
                guest.choose(key)
                assert guest.take(len(data)) == data, hex(key)
            guest.choose(fw_cfg.SETUP_DATA)
            assert guest.take(3 * 512) == bytes(setup)


@pytest.mark.parametrize("name", ["absent", ""], ids=["absent", "directory"])
def test_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    items = [{"name": "opt/f", "file": str(tmp_path / name)}]
    config = config_of(
        payload={"kernel": "/k", "fw_cfg_config": {"kernel": False, "e820": False, "items": items}}
    )
    assert config.payload is not None

    with (
        pytest.raises(HostError, match=str(tmp_path / name)),
        open_fw_cfg(config.payload, cast("GuestMemory", Ram())),
    ):
        pass
