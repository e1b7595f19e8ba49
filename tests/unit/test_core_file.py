"""The core file of a VM: its headers, its notes, and how it is written."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.unit.owner_fixture import CONFIG, Bench, running
from tests.unit.resident import resident
from vmm.boot.layout import RamRange
from vmm.errors import ConfigError, HostError, NotCreatedError
from vmm.kvm_cffi.structs import DescriptorTable, Regs, Segment, Sregs
from vmm.machine.commands import Boot, Coredump, Create, Pause
from vmm.machine.memory import GuestMemory
from vmm.machine.zones import Room, Zone
from vmm.snapshot.core_file import EHDR, PHDR, Piece, VcpuRegisters, headers
from vmm.snapshot.coredump import write_core
from vmm.snapshot.paging import read_on_demand
from vmm.snapshot.url import path_of

MIB = 1 << 20
CS = Segment(selector=0x10, limit=0xFFFFFFFF, type=11, present=1, s=1, l=1, g=1)
VCPUS = [
    VcpuRegisters(
        index,
        Regs(rax=0xA0 + index, rip=0xFFFFFFFF81000000, rsp=0x7000, rflags=0x46),
        Sregs(cs=CS, idt=DescriptorTable(0x5000, 0xFFF), cr3=0x1000, cr0=0x80050033),
        0xFFFF888000000000,
    )
    for index in range(2)
]
RAM = [Piece(0, 3 << 30), Piece(4 << 30, MIB)]


def notes_of(data: bytes) -> list[tuple[bytes, int, bytes]]:
    """Each note's name, kind and description."""
    kind, _, offset, _, _, size, _, _ = PHDR.unpack_from(data, EHDR.size)
    assert kind == 4
    at, notes = offset, []
    while at < offset + size:
        name_bytes, description_bytes, note_kind = struct.unpack_from("<III", data, at)
        name = data[at + 12 : at + 12 + name_bytes]
        at += 12 + -(-name_bytes // 4) * 4
        notes.append((name, note_kind, data[at : at + description_bytes]))
        at += -(-description_bytes // 4) * 4
    return notes


def test_headers_have_a_segment_for_each_piece_of_ram_one_after_the_other() -> None:
    data = headers(VCPUS, RAM)

    segments = [PHDR.unpack_from(data, EHDR.size + PHDR.size * (1 + at)) for at in range(2)]
    assert [(kind, gpa, size) for kind, _, _, _, gpa, size, _, _ in segments] == [
        (1, 0, 3 << 30),
        (1, 4 << 30, MIB),
    ]
    assert [offset for _, _, offset, *_ in segments] == [len(data), len(data) + (3 << 30)]


def test_notes_are_a_status_and_a_state_for_each_vcpu() -> None:
    notes = notes_of(headers(VCPUS, RAM))

    assert [(name, kind, len(text)) for name, kind, text in notes] == [
        (b"CORE\0", 1, 336),
        (b"CORE\0", 1, 336),
        (b"QEMU\0", 0, 440),
        (b"QEMU\0", 0, 440),
    ]
    status, state = notes[1][2], notes[3][2]
    assert struct.unpack_from("<i", status, 32) == (1,)
    registers = struct.unpack_from("<27Q", status, 112)
    assert (registers[10], registers[16], registers[17]) == (0xA1, 0xFFFFFFFF81000000, 0x10)
    assert struct.unpack_from("<IIQ", state) == (1, 440, 0xA1)
    assert struct.unpack_from("<IIIIQ", state, 152) == (0x10, 0xFFFFFFFF, 0xA09B00, 0, 0)
    assert struct.unpack_from("<5QQ", state, 392)[3:] == (0x1000, 0, 0xFFFF888000000000)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.open(
        [Zone("a", 3 * MIB), Zone("b", MIB)], [RamRange(0, 3 * MIB), RamRange(4 << 30, MIB)]
    ) as memory:
        memory.write(0x2000, b"hello")
        memory.write(2 * MIB - 4, b"across a step")
        memory.write((4 << 30) + MIB - 3, b"end")
        yield memory


async def test_written_file_has_all_ram_and_holes_where_it_is_zero(
    memory: GuestMemory, tmp_path: Path
) -> None:
    path = tmp_path / "core"

    await write_core(str(path), memory, VCPUS)

    data, before = path.read_bytes(), headers(VCPUS, [Piece(0, 3 * MIB), Piece(4 << 30, MIB)])
    assert data == before + memory.read(0, 3 * MIB) + memory.read(4 << 30, MIB)
    assert path.stat().st_blocks * 512 < 64 << 10
    assert path.stat().st_mode & 0o777 == 0o600


async def test_written_file_has_of_a_room_what_is_plugged(tmp_path: Path) -> None:
    zone, base, block = Zone("a", MIB, room=8 * MIB), 4 << 30, 2 * MIB
    room = Room(zone, RamRange(base, zone.room))
    path = tmp_path / "core"
    with GuestMemory.open([zone], [RamRange(0, MIB)], [room]) as memory:
        memory.write(base, b"not plugged")
        memory.write(base + 2 * block, b"plugged")
        memory.room_of("a")[1].mark(base + 2 * block, 1, plugged=True)

        await write_core(str(path), memory, VCPUS)

    before = headers(VCPUS, [Piece(0, MIB), Piece(base + 2 * block, block)])
    data = path.read_bytes()
    assert data == before + bytes(MIB) + b"plugged".ljust(block, b"\0")


@pytest.mark.parametrize("shared", [False, True])
async def test_dump_looks_at_nothing_that_holds_no_memory(tmp_path: Path, shared: bool) -> None:
    path = tmp_path / "core"
    zone = Zone("ram", 8 * MIB, shared=shared, thp=False)
    with GuestMemory.open([zone], [RamRange(0, 8 * MIB)]) as memory:
        memory.write(3 * MIB, b"written")
        before = resident(memory)

        await write_core(str(path), memory, VCPUS)

        assert resident(memory) == before
    content = bytes(3 * MIB) + b"written".ljust(5 * MIB, b"\0")
    assert path.read_bytes() == headers(VCPUS, [Piece(0, 8 * MIB)]) + content


@pytest.mark.parametrize("shared", [False, True])
async def test_dump_has_what_is_still_to_be_read_on_demand(tmp_path: Path, shared: bool) -> None:
    content = bytes(range(256)) * (2 * MIB // 256)
    saved = tmp_path / "memory-ranges"
    saved.write_bytes(content)
    zone = Zone("ram", 2 * MIB, shared=shared, thp=False)
    with saved.open("rb") as file, GuestMemory.open([zone], [RamRange(0, 2 * MIB)]) as memory:
        read_on_demand(file.fileno(), memory)

        await write_core(str(tmp_path / "core"), memory, VCPUS)

    dumped = (tmp_path / "core").read_bytes()
    assert dumped == headers(VCPUS, [Piece(0, 2 * MIB)]) + content


async def test_file_that_is_there_is_not_touched(memory: GuestMemory, tmp_path: Path) -> None:
    path = tmp_path / "core"
    path.write_text("precious")

    with pytest.raises(HostError, match="name a file that is not there yet"):
        await write_core(str(path), memory, VCPUS)

    assert path.read_text() == "precious"


async def test_dump_that_fails_leaves_no_file(
    memory: GuestMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(HostError, match="No space left"):
        await write_core(str(tmp_path / "core"), memory, VCPUS)

    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is missing; install it")
async def test_gdb_reads_registers_and_memory(memory: GuestMemory, tmp_path: Path) -> None:
    path = tmp_path / "core"
    await write_core(str(path), memory, VCPUS)
    commands = ("thread 2", "info registers rax rip", "x/s 0x2000", "info threads")
    options = [word for command in commands for word in ("-ex", command)]

    done = await trio.run_process(
        ["gdb", "-batch", "-nx", "-ex", "set arch i386:x86-64", "-ex", f"core {path}", *options],
        capture_stdout=True,
        capture_stderr=True,
    )

    assert b"0xa1" in done.stdout
    assert b"0xffffffff81000000" in done.stdout
    assert b'"hello"' in done.stdout


@pytest.mark.parametrize("url", ["", "/tmp/core", "file://core", "http://host/core", "file://"])
def test_url_of_anything_but_an_absolute_path_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="give file:// and the absolute path"):
        path_of(url, "destination_url", "a file to make")


async def test_command_dumps_a_running_and_a_paused_vm_and_tells_of_it() -> None:
    async with running() as bench:
        await bench.do(
            Create(CONFIG), Boot(), Coredump("file:///a"), Pause(), Coredump("file:///b")
        )

        assert bench.machine.calls == ["dump to /a while running", "pause", "dump to /b"]
        assert bench.events.names.count("coredumping") == 2


async def test_dump_without_a_vm_is_refused() -> None:
    bench: Bench
    async with running() as bench:
        with pytest.raises(NotCreatedError):
            await bench.do(Coredump("file:///a"))
