"""Disks of real machines: a tiny guest's I/O through doorbells, refused images, locks, resizing."""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.leaks import check_nothing_left, holdings
from tests.kvm.guests.machines import SharedRam, configure, file_memory, owned, running
from tests.kvm.guests.programs import HALT, say
from tests.kvm.guests.virtio import AVAIL, BAR, DESC, USED, move_bar, set_up
from vmm.config.disk import DiskConfig
from vmm.config.vm import VmConfig
from vmm.errors import ConfigError, DuplicateError, HostError, NotFoundError, UnsupportedError
from vmm.machine import disks
from vmm.machine.commands import Boot, Create, Delete, ResizeDisk, Shutdown
from vmm.machine.disks import DiskPool
from vmm.machine.scope import sole_cause
from vmm.virtio.block import Block
from vmm.virtio.pci_transport import NOTIFY

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

SIZE = 1 << 20
SECTOR = 512
HEADER, DATA, STATUS = 0x21_3000, 0x21_4000, 0x21_5000
IN, OUT, FLUSH = 0, 1, 4
NEXT, WRITE = 1, 2
PATTERN = 0x5AA5_C33C

Disks = Callable[[Path], list[dict[str, object]]]
"""Makes what some disks need in a folder and gives their configurations."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image whose every sector says which one it is."""
    path = tmp_path / "disk.raw"
    path.write_bytes(b"".join(struct.pack("<I", at) * 128 for at in range(SIZE // SECTOR)))
    return path


@pytest.fixture
def ram(tmp_path: Path) -> Iterator[SharedRam]:
    shared = SharedRam(tmp_path)
    yield shared
    shared.close()


def describe(slot: int, address: int, size: int, flags: int, following: int) -> str:
    at = DESC + 16 * slot
    return f"""
        movl ${address:#x}, {at:#x}; movl ${size}, {at + 8:#x}
        movw ${flags}, {at + 12:#x}; movw ${following}, {at + 14:#x}
    """


def ask(number: int, kind: int, sector: int) -> str:
    """Make the ``number``-th request, for one sector, ring the doorbell and wait for the answer."""
    data_flags = NEXT | (WRITE if kind == IN else 0)
    return f"""
        movl ${kind}, {HEADER:#x}; movl $0, {HEADER + 4:#x}
        movl ${sector}, {HEADER + 8:#x}; movl $0, {HEADER + 12:#x}
        movb $0xee, {STATUS:#x}
        {describe(0, HEADER, 16, NEXT, 2 if kind == FLUSH else 1)}
        {describe(1, DATA, SECTOR, data_flags, 2)}
        {describe(2, STATUS, 1, WRITE, 0)}
        movw $0, {AVAIL + 4 + 2 * (number - 1):#x}
        movw ${number}, {AVAIL + 2:#x}
        movw $0, {BAR + NOTIFY:#x}
    1:  cmpw ${number}, {USED + 2:#x}
        jne 1b
    """


WRITE_A_SECTOR = f"""
    mov ${DATA:#x}, %edi; mov ${PATTERN:#x}, %eax; mov $128, %ecx; cld; rep stosl
    {ask(1, OUT, 7)}
    {ask(2, FLUSH, 0)}
    {ask(3, IN, 9)}
"""


@pytest.mark.parametrize(
    "options", [{}, {"direct": True}, {"disable_io_uring": True}], ids=["ring", "direct", "threads"]
)
async def test_guest_writes_a_sector_and_reads_another(
    tmp_path: Path, ram: SharedRam, image: Path, options: dict[str, bool]
) -> None:
    program = f"{move_bar(1)}{set_up()}{WRITE_A_SECTOR}{say('.')}{HALT}"
    config = configure(
        write_kernel(tmp_path, program),
        memory=file_memory(ram.path),
        disks=[{"path": str(image), "image_type": "Raw", **options}],
    )

    async with running(config) as vm:
        await vm.debug.wait_for(b".")
        counters = vm.machine.counters["_disk0"]

    assert (ram.word(STATUS) & 0xFF, ram.word(DATA), ram.word(DATA + 508)) == (0, 9, 9)
    assert ram.word(USED + 4 + 8 * 2 + 4) == SECTOR + 1
    assert content(image, 7) == struct.pack("<I", PATTERN) * 128
    assert (counters["write_ops"], counters["read_ops"]) == (1, 1)


def content(image: Path, sector: int) -> bytes:
    return image.read_bytes()[sector * SECTOR : (sector + 1) * SECTOR]


async def test_boot_disks_come_first_and_where_32_bit_firmware_reaches_them(
    tmp_path: Path, image: Path
) -> None:
    other = tmp_path / "other.raw"
    disks = [{"path": str(image)}, {"path": make(other), "id": "data"}]

    async with running(configure(write_kernel(tmp_path, HALT), disks=disks)) as vm:
        tree = vm.machine.device_tree

    for name, bdf in (("_disk0", "0000:00:01.0"), ("data", "0000:00:02.0")):
        transport: Any = tree[f"_virtio-pci-{name}"]
        assert transport["pci_bdf"] == bdf
        bar = transport["resources"][0]["PciBar"]
        assert bar["type_"] == "Mmio32"
        assert bar["base"] + bar["size"] <= 1 << 32


def make(path: Path, size: int = SIZE) -> str:
    path.touch()
    os.truncate(path, size)
    return str(path)


def missing(folder: Path) -> list[dict[str, object]]:
    return [{"path": str(folder / "absent.raw")}]


def empty(folder: Path) -> list[dict[str, object]]:
    return [{"path": make(folder / "empty.raw", 0)}]


def folder_as_image(folder: Path) -> list[dict[str, object]]:
    return [{"path": str(folder), "readonly": True}]


def same_twice(folder: Path) -> list[dict[str, object]]:
    path = make(folder / "disk.raw")
    return [{"path": path}, {"path": path}]


def same_id_twice(folder: Path) -> list[dict[str, object]]:
    return [{"path": make(folder / f"{name}.raw"), "id": "root"} for name in "ab"]


def odd_queue_size(folder: Path) -> list[dict[str, object]]:
    return [{"path": make(folder / "disk.raw"), "queue_size": 100}]


def too_many_queues(folder: Path) -> list[dict[str, object]]:
    return [{"path": make(folder / "disk.raw"), "num_queues": 2}]


def qcow2(folder: Path) -> list[dict[str, object]]:
    (folder / "disk.qcow2").write_bytes(b"QFI\xfb" + bytes(1020))
    return [{"path": str(folder / "disk.qcow2")}]


def same_slot_twice(folder: Path) -> list[dict[str, object]]:
    return [{"path": make(folder / f"{name}.raw"), "pci_device_id": 5} for name in "ab"]


def vhost_user(folder: Path) -> list[dict[str, object]]:
    return [{"vhost_user": True, "vhost_socket": str(folder / "s")}]


@pytest.mark.parametrize(
    ("disks", "kind", "words"),
    [
        (missing, HostError, "No such file"),
        (empty, ConfigError, "has 0 bytes"),
        (folder_as_image, ConfigError, "a directory"),
        (same_twice, HostError, "another instance likely holds a lock"),
        (same_id_twice, DuplicateError, "root is not unique"),
        (odd_queue_size, ConfigError, "power of 2"),
        (too_many_queues, ConfigError, r"Queue count \(2\) must not exceed boot vCPUs"),
        (qcow2, UnsupportedError, "Qcow2"),
        (same_slot_twice, ConfigError, "5"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
async def test_disk_that_cannot_be_refuses_the_boot_and_leaves_nothing(
    tmp_path: Path, disks: Disks, kind: type[Exception], words: str
) -> None:
    config = configure(write_kernel(tmp_path, HALT), disks=disks(tmp_path))
    async with owned() as held:
        await held.do(Create(config))
        with pytest.raises(kind, match=words):
            await held.do(Boot())
        before = holdings()
        with pytest.raises(kind, match=words):
            await held.do(Boot())
        check_nothing_left(before)
        await held.do(Delete())


async def test_lock_lasts_from_boot_to_shutdown(tmp_path: Path, image: Path) -> None:
    config = configure(write_kernel(tmp_path, HALT), disks=[{"path": str(image)}])
    async with owned() as first, owned() as second:
        await first.do(Create(config), Boot())
        await second.do(Create(config))
        with pytest.raises(HostError, match="lock"):
            await second.do(Boot())

        await first.do(Shutdown())
        await second.do(Boot())


async def test_disk_is_resized_by_command_and_others_are_not(tmp_path: Path, image: Path) -> None:
    config = configure(write_kernel(tmp_path, HALT), disks=[{"path": str(image), "id": "root"}])
    async with owned(config) as held:
        await held.do(ResizeDisk("root", 2 * SIZE))
        for command, kind in (
            (ResizeDisk("absent", SIZE), NotFoundError),
            (ResizeDisk("__rng", SIZE), ConfigError),
            (ResizeDisk("root", SIZE + 1), ConfigError),
        ):
            with pytest.raises(kind):
                await held.do(command)

    assert os.stat(image).st_size == 2 * SIZE


async def test_machine_that_ends_with_io_in_flight_leaves_nothing(
    tmp_path: Path, image: Path
) -> None:
    endless = f"""
        {move_bar(1)}{set_up()}{describe(0, HEADER, 16, NEXT, 1)}
        {describe(1, DATA, SECTOR, NEXT | WRITE, 2)}{describe(2, STATUS, 1, WRITE, 0)}
        xor %eax, %eax
        {say(".")}
    5:  incw %bx
        movw %bx, {AVAIL + 2:#x}
        movw $0, {BAR + NOTIFY:#x}
    6:  cmpw %bx, {USED + 2:#x}
        jne 6b
        jmp 5b
    """
    disks = [{"path": str(image), "image_type": "Raw", "direct": True}]
    config = configure(write_kernel(tmp_path, f"xor %ebx, %ebx; {endless}"), disks=disks)
    await run_a_while(config)
    before = holdings()

    for _ in range(3):
        await run_a_while(config)

    check_nothing_left(before)


async def run_a_while(config: VmConfig) -> None:
    async with running(config) as vm:
        await vm.debug.wait_for(b".")
        with trio.fail_after(10):
            while vm.machine.counters["_disk0"]["read_ops"] < 20:
                await trio.lowlevel.checkpoint()


async def test_disk_without_a_back_end_here_is_refused_by_name(tmp_path: Path) -> None:
    config = configure(
        write_kernel(tmp_path, HALT),
        memory={"size": 64 << 20, "shared": True},
        disks=vhost_user(tmp_path),
    )
    with pytest.raises(ExceptionGroup) as caught:
        async with running(config):
            pass

    assert isinstance(cause := sole_cause(caught.value), UnsupportedError)
    assert "vhost_user" in str(cause)


async def test_disks_of_a_machine_that_ends_are_left_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_end, ending, has_waited = trio.Event(), list[str](), list[bool]()
    open_disk = disks.open_disk

    @asynccontextmanager
    async def slow_disk(config: DiskConfig, id: str, pool: DiskPool) -> AsyncIterator[Block]:
        async with open_disk(config, id, pool) as device:
            try:
                yield device
            finally:
                ending.append(id)
                if len(ending) == 2:
                    both_end.set()
                with trio.move_on_after(2, shield=True) as patience:
                    await both_end.wait()
                has_waited.append(patience.cancelled_caught)

    monkeypatch.setattr(disks, "open_disk", slow_disk)
    paths = [tmp_path / name for name in ("one", "other")]
    for path in paths:
        path.write_bytes(bytes(SIZE))
    config = configure(
        write_kernel(tmp_path, HALT),
        disks=[{"path": str(path), "image_type": "Raw"} for path in paths],
    )

    async with running(config):
        pass

    assert has_waited == [False, False]
