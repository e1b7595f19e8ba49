"""Disks and networks under load from a guest that polls: every block and every frame is looked at.

The guest is the benchmarks' own, in C; see tests/kvm/load.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from tests.kvm.guests.machines import Running, configure, running
from tools.bench.errors import BenchError
from tools.bench.load_guest import DONE, Report, build_kernel, read_report, step
from tools.bench.network import TAP, own_network

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

RINGS = {"split": (), "packed": ("packed",)}
"""Of the guest's steps, what makes its rings so."""

BLOCK = 4096
BLOCKS = 1024
PATIENCE_CYCLES = 50_000_000_000
"""More than any deadline here: the test's own ends a guest that waits for nothing."""

ETHERTYPE = 0x88B5
DATA, ANSWER = 1, 2
SPREAD = 0x9E37_79B9_7F4A_7C15
MASK = (1 << 64) - 1
FRAMES = 2000
WINDOW = 256
ANSWERED = 64
SO_RCVBUFFORCE = 33
ROOM_BYTES = 64 << 20
"""Of the host's socket: all frames of a test fit, however late it is read."""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_kernel(tmp_path_factory.mktemp("load"))


@asynccontextmanager
async def loaded(kernel: Path, *steps: str, **devices: object) -> AsyncIterator[Running]:
    """Run the guest with its steps."""
    payload = {"kernel": str(kernel), "cmdline": " ".join(steps)}
    async with running(configure(kernel, payload=payload, **devices)) as vm:
        yield vm


async def reports(vm: Running) -> list[Report]:
    """Wait for the guest's end; what it said of its steps."""
    await vm.debug.wait_for(DONE.encode() + b"\n")
    *lines, _ = bytes(vm.debug.output).decode().splitlines()
    return [read_report(line) for line in lines]


def block(number: int) -> bytes:
    """What the guest writes to a block."""
    return struct.pack("<512Q", *range(number << 32, (number << 32) + 512))


@pytest.mark.parametrize(
    "options",
    [{}, {"direct": True}, {"disable_io_uring": True}, {"queue_size": 1024}],
    ids=["ring", "direct", "threads", "long queue"],
)
@pytest.mark.parametrize("depth", [1, 32])
@pytest.mark.parametrize("rings", RINGS)
async def test_disk_under_load_gives_back_what_was_written(
    tmp_path: Path, kernel: Path, options: dict[str, object], depth: int, rings: str
) -> None:
    image = tmp_path / "disk.raw"
    blocks = BLOCKS if depth > 1 else BLOCKS // 16
    with image.open("wb") as file:
        file.truncate(BLOCKS * BLOCK)
    disk = {"path": str(image), "image_type": "Raw", **options}
    steps = (*RINGS[rings], step("check", blocks, depth))

    async with loaded(kernel, *steps, disks=[disk]) as vm:
        said = await reports(vm)
        counters = vm.machine.counters["_disk0"]

    assert said == [Report("check", {"blocks": blocks, "wrong": 0})]
    content = image.read_bytes()
    for number in range(blocks):
        assert content[number * BLOCK : (number + 1) * BLOCK] == block(number)
    assert not any(content[blocks * BLOCK :])
    assert (counters["write_ops"], counters["read_ops"]) == (blocks, 2 * blocks)


async def test_disk_with_many_bytes_in_flight_reads_and_writes_on(
    tmp_path: Path, kernel: Path
) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(16 << 20))
    load = (1, 8, 1 << 20, 50_000_000)
    steps = [step("disk", writes, *load) for writes in (0, 1)]

    async with loaded(kernel, *steps, disks=[{"path": str(image), "image_type": "Raw"}]) as vm:
        said = await reports(vm)

    assert [report.name for report in said] == ["disk", "disk"]
    assert all(report.numbers["requests"] >= 8 for report in said)


@pytest.fixture
def network() -> Iterator[None]:
    """A namespace with a tap that is up."""
    try:
        with own_network():
            yield
    except BenchError as error:
        pytest.skip(f"taps cannot be made here: {error}")


@contextmanager
def host_end() -> Iterator[trio.socket.SocketType]:
    """A socket that has all the frames that come out of the tap."""
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
    with raw:
        raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM_BYTES)
        raw.bind((TAP, ETHERTYPE))
        yield trio.socket.from_stdlib_socket(raw)


def frame(number: int, size: int, *, kind: int = DATA, from_guest: bool = False) -> bytes:
    """A frame as the guest makes and expects it: its words belong to its number."""
    sender = b"\2\0\0\0\0" + (b"\2" if from_guest else b"\1")
    head = b"\xff" * 6 + sender + struct.pack(">H", ETHERTYPE) + struct.pack("<HQ", kind, number)
    count = (size - len(head)) // 8
    first = number * SPREAD & MASK
    words = struct.pack(f"<{count}Q", *((first + at) & MASK for at in range(count)))
    return (head + words).ljust(size, b"\0")


async def next_frame(host: trio.socket.SocketType) -> bytes:
    """The next one that the guest has sent; those of this end are passed over."""
    while True:
        data, address = await host.recvfrom(1 << 16)
        if address[2] != socket.PACKET_OUTGOING:
            return bytes(data)


@pytest.mark.usefixtures("network")
@pytest.mark.parametrize("rings", RINGS)
@pytest.mark.parametrize("size", [64, 1496])
async def test_frames_of_a_guest_under_load_arrive_whole_and_in_order(
    kernel: Path, size: int, rings: str
) -> None:
    steps = (*RINGS[rings], step("send", size, FRAMES))

    with host_end() as host:
        async with loaded(kernel, *steps, net=[{"tap": TAP}]) as vm:
            with trio.fail_after(10):
                for number in range(FRAMES):
                    assert await next_frame(host) == frame(number, size, from_guest=True)
            (said,) = await reports(vm)

    assert (said.name, said.numbers["frames"]) == ("send", FRAMES)


@pytest.mark.usefixtures("network")
@pytest.mark.parametrize("rings", RINGS)
@pytest.mark.parametrize("size", [64, 1496])
async def test_guest_under_load_gets_frames_whole_and_in_order(
    kernel: Path, size: int, rings: str
) -> None:
    steps = (*RINGS[rings], step("receive", FRAMES, ANSWERED, PATIENCE_CYCLES))

    with host_end() as host:
        async with loaded(kernel, *steps, net=[{"tap": TAP}]) as vm:
            await vm.debug.wait_for(b"ready receive\n")
            with trio.fail_after(10):
                await send_in_windows(host, size)
            _, said = await reports(vm)

    del said.numbers["cycles"]
    assert said == Report("receive", {"frames": FRAMES, "wrong": 0, "disordered": 0})


async def send_in_windows(host: trio.socket.SocketType, size: int) -> None:
    """Send all frames, at most a window of which the guest has not answered."""
    sent = answered = 0
    while answered < FRAMES:
        while sent < min(answered + WINDOW, FRAMES):
            await host.send(frame(sent, size))
            sent += 1
        answered = struct.unpack_from("<Q", await next_frame(host), 16)[0]


@pytest.mark.usefixtures("network")
async def test_frames_that_a_guest_sends_back_come_to_whom_sent_them(kernel: Path) -> None:
    count = 300

    with host_end() as host:
        async with loaded(kernel, step("echo", count, PATIENCE_CYCLES), net=[{"tap": TAP}]) as vm:
            await vm.debug.wait_for(b"ready echo\n")
            with trio.fail_after(10):
                for number in range(count):
                    size = 64 + 8 * (number % 180)
                    await host.send(frame(number, size))
                    answer = frame(number, size, kind=ANSWER, from_guest=True)
                    assert await next_frame(host) == answer
            _, said = await reports(vm)

    assert said == Report("echo", {"frames": count})
