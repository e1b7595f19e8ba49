"""Rate limits as a stock guest meets them: each kept within 5 % by the guest's own clock.

What a bucket holds at first is spent before anything is measured, except where it is what is
measured. All limits are measured at once: each has a load of its own.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from tests.guest.conftest import Guest, booted
from tests.guest.debian import tool
from tools.images.kernels import Kernel

pytestmark = pytest.mark.guest

MIB = 1 << 20
TOLERANCE = 0.05
WINDOW_S = 10
WINDOWS = 6
"""A busy host gives the guest less than the limit, never more: it is measured until it does not."""

RATE = MIB // 4
"""Bytes a second, of every limit on bytes."""
OPS = 20
"""Operations a second, of every limit on operations."""
REFILL_MS = 300
"""What a bucket may have saved up before a window counts little in it."""
BURST = 32 * RATE

STREAMS = 6
"""One alone sends no more than two packets a wake, which a slow host may not make often enough."""
PORT, SINK, NOBODY = 5000, 5001, 9
PATIENCE_S = 90.0
BANDWIDTH = f"bw_size={RATE * REFILL_MS // 1000},bw_refill_time={REFILL_MS}"
OPERATIONS = f"ops_size={OPS * REFILL_MS // 1000},ops_refill_time={REFILL_MS}"


async def test_limited_disks_keep_to_bytes_operations_burst_and_the_budget_of_their_group(
    place: Path, linux: Kernel, with_virtio: Path
) -> None:
    limits = (
        f"{BANDWIDTH},bw_one_time_burst={BURST}",
        OPERATIONS,
        "rate_limit_group=slow",
        "rate_limit_group=slow",
    )
    disks = []
    for number, limit in enumerate(limits):
        image = place / f"{number}.raw"
        image.touch()
        os.truncate(image, 64 * MIB)
        disks.append(f"path={image},image_type=raw,{limit}")
    options = ("--rate-limit-group", f"id=slow,{BANDWIDTH}", "--disk", *disks)
    async with booted(place, linux, with_virtio, *options) as guest:
        start, *_ = await read_so_far(guest)
        await guest.run(f"dd if=/dev/vda of=/dev/null bs=1M count={BURST // MIB} iflag=direct 2>&1")
        end, *_ = await read_so_far(guest)
        # The burst is not waited for: at the rate it would take twice this time.
        assert end - start < BURST / RATE / 2
        for name, size in (("vda", 64), ("vdb", 4), ("vdc", 64), ("vdd", 64)):
            read = f"dd if=/dev/{name} of=/dev/null bs={size}k iflag=direct"
            await guest.run(f"(while {read}; do :; done < /dev/null > /dev/null 2>&1 &)")
        await check_rates(guest, partial(read_so_far, guest), (RATE, OPS, RATE))


async def read_so_far(guest: Guest) -> list[float]:
    """The guest's clock; bytes of the first disk, operations of the second, bytes of the group."""
    names = "vda/stat vdb/stat vdc/stat vdd/stat"
    shown = await guest.run(f"cd /sys/block; cat /proc/uptime {names}; cd /")
    uptime, *lines = shown.splitlines()
    fields = [[int(field) for field in line.split()] for line in lines]
    sectors, operations = [each[2] for each in fields], [each[0] for each in fields]
    return [
        float(uptime.split()[0]),
        sectors[0] * 512,
        operations[1],
        (sectors[2] + sectors[3]) * 512,
    ]


async def check_rates(
    guest: Guest, count: Callable[[], Awaitable[list[float]]], expected: Sequence[float]
) -> None:
    """What is counted keeps to its rates, by the guest's clock, once the buckets are empty."""
    await wait_until_spent(count, expected)
    best = [0.0] * len(expected)
    for _ in range(WINDOWS):
        first = await count()
        await guest.run(f"sleep {WINDOW_S}", PATIENCE_S)
        uptime, *counts = (end - start for start, end in zip(first, await count(), strict=True))
        rates = [each / uptime for each in counts]
        most = [rate * (1 + TOLERANCE) for rate in expected]
        assert all(rate <= limit for rate, limit in zip(rates, most, strict=True)), rates
        best = [max(pair) for pair in zip(best, rates, strict=True)]
        if best == [pytest.approx(rate, rel=TOLERANCE) for rate in expected]:
            return
    raise AssertionError(f"{best} a second are less than {expected}")


async def wait_until_spent(
    count: Callable[[], Awaitable[list[float]]], rates: Sequence[float]
) -> None:
    """Wait until more has passed than the buckets held at first. Raises: trio.TooSlowError."""
    start = await count()
    enough = [value + 2 * rate for value, rate in zip(start[1:], rates, strict=True)]
    with trio.fail_after(PATIENCE_S):
        while True:
            counts = await count()
            if all(now >= least for now, least in zip(counts[1:], enough, strict=True)):
                return
            await trio.sleep(0.2)  # The guest has nothing that would tell.


class Line(NamedTuple):
    """A limited network, and which way it is loaded.

    Each way has a network of its own: where both are full, what answers one waits with the other.
    """

    name: str
    limit: str
    counter: str
    expected: int

    @property
    def number(self) -> int:
        """Counts networks."""
        return int(self.name.removeprefix("eth"))

    @property
    def host(self) -> str:
        """The host's address."""
        return f"192.168.{self.number}.1"

    @property
    def guest(self) -> str:
        """The guest's address."""
        return f"192.168.{self.number}.2"

    @property
    def mac(self) -> str:
        """The guest's hardware address."""
        return f"02:77:00:00:00:0{self.number}"


SENDS, RECEIVES, ASKS, IS_ASKED = LINES = (
    Line("eth0", BANDWIDTH, "tx_bytes", RATE),
    Line("eth1", BANDWIDTH, "rx_bytes", RATE),
    Line("eth2", OPERATIONS, "tx_packets", OPS),
    Line("eth3", OPERATIONS, "rx_packets", OPS),
)


async def test_limited_networks_keep_to_bytes_and_operations_each_way(
    place: Path, linux: Kernel, with_virtio: Path
) -> None:
    nets = [
        f"tap=limit{line.number},ip={line.host},mask=255.255.255.0,mac={line.mac},{line.limit}"
        for line in LINES
    ]
    async with booted(place, linux, with_virtio, "--net", *nets) as guest:
        for line in LINES:
            await guest.run(f"ip address add {line.guest}/24 dev {line.name}")
            await guest.run(f"ip link set {line.name} up")
            # A question for the address would wait behind what is limited.
            known = ("lladdr", line.mac, "dev", f"limit{line.number}", "nud", "permanent")
            await tool("ip", "neighbour", "replace", line.guest, *known)
        async with loaded(guest):
            await check_rates(guest, partial(counted, guest), [line.expected for line in LINES])


async def counted(guest: Guest) -> list[float]:
    """The guest's clock, and what its kernel has counted of each way that is loaded."""
    names = " ".join(f"{line.name}/statistics/{line.counter}" for line in LINES)
    shown = await guest.run(f"cd /sys/class/net; cat /proc/uptime {names}; cd /")
    uptime, *lines = shown.splitlines()
    return [float(uptime.split()[0]), *map(float, lines)]


@asynccontextmanager
async def loaded(guest: Guest) -> AsyncIterator[None]:
    """More than the limits let through: streams on the first networks, packets on the others."""

    async def take() -> None:
        async with await connect(SENDS.guest, PORT) as stream:
            await stream.send_all(b"GET /zeros HTTP/1.0\r\n\r\n")
            while await stream.receive_some(MIB):
                pass

    async def give() -> None:
        async with await connect(RECEIVES.guest, SINK) as stream:
            while True:
                await stream.send_all(bytes(64 << 10))

    async def throw() -> None:
        while True:
            await packets.sendto(b"to nobody", (IS_ASKED.guest, NOBODY))
            await trio.sleep(1 / (4 * OPS))

    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as packets:
        await guest.run("mkdir /run/www; truncate -s 1G /run/www/zeros")
        await guest.run(f"httpd -p {SENDS.guest}:{PORT} -h /run/www")
        # In subshells: busybox's shell may take the end of a job for the end of its input.
        await guest.run(f"(nc -l -p {SINK} < /dev/null > /dev/null 2>&1 &)")
        for _ in range(4):
            await guest.run(f"(ping -i 0.02 {ASKS.host} < /dev/null > /dev/null 2>&1 &)")
        async with trio.open_nursery() as nursery:
            for part in (*(take,) * STREAMS, give, throw):
                nursery.start_soon(part)
            yield
            nursery.cancel_scope.cancel()


async def connect(address: str, port: int) -> trio.SocketStream:
    """Connect to the guest as soon as it listens."""
    while True:
        try:
            return await trio.open_tcp_stream(address, port)
        except OSError:
            await trio.sleep(0.1)  # Nothing tells from outside that it listens.
