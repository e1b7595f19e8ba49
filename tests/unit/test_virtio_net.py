"""The network device behind its transport: features, configuration space, packets, commands."""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import trio

from vmm.errors import ConfigError
from vmm.kvm_cffi.limiter import Bucket, Limiter
from vmm.net.offload import Offload
from vmm.net.rarp import announcement
from vmm.testing.backends import MemoryTap
from vmm.testing.driver import Driver
from vmm.testing.packets import HEADER, RX_HEADER
from vmm.testing.virtio_pci import Bench, driven
from vmm.virtio.net import Net, PairLimits
from vmm.virtio.net_spec import CHECKSUMS, FRAGMENTS, SEGMENTS, NetFeature
from vmm.virtio.spec import Feature, Status

MAC = bytes.fromhex("02000000002a")
ALWAYS = 1 << 40 | 1 << 34 | 1 << 32 | 1 << 29 | 1 << 17 | 1 << 16 | 1 << 21 | 1 << 5 | 1 << 22
OK, ERR = b"\0", b"\1"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def tap(stack: ExitStack) -> MemoryTap:
    return stack.enter_context(MemoryTap(2))


def net(tap: MemoryTap, **options: object) -> Net:
    return Net("lan", tap, MAC, 16, **options)  # type: ignore[arg-type]


async def arrival(wire: socket.socket) -> bytes:
    """Wait for a packet at a wire's far end."""
    with trio.fail_after(5):
        await trio.lowlevel.wait_readable(wire)
    return wire.recv(70_000)


async def order(bench: Bench, queue: Driver, *command: bytes) -> bytes:
    """Give a command and wait for its answer."""
    queue.add([b"".join(command)], [1])
    bench.driver.kick(queue.state.index)
    await bench.interrupt(queue.state.index + 1)
    [used] = queue.collect()
    queue.enable()
    return used.data


def test_features_are_those_of_the_configuration(tap: MemoryTap) -> None:
    assert net(tap).features | Net.RING_FEATURES | Feature.VERSION_1 == ALWAYS
    assert net(tap, mtu=1500).features == net(tap).features | 1 << 3
    everything = CHECKSUMS | SEGMENTS | FRAGMENTS
    assert net(tap, offloads=everything).features == net(tap).features | 0x7F87


async def test_configuration_space_shows_address_link_pairs_and_mtu(tap: MemoryTap) -> None:
    async with driven(net(tap, mtu=9000)) as bench:
        shown = bytes(bench.driver.read_config(at, 1) for at in range(12))
        assert shown == MAC + struct.pack("<HHH", 1, 2, 9000)
        await bench.driver.write_config(0, 1, 0xFF)
        assert bench.driver.read_config(0, 1) == MAC[0]
    assert len(net(tap).read_config(0, 4096)) == 12
    assert net(tap).read_config(8, 100) == struct.pack("<HH", 2, 0)
    assert net(tap).read_config(12, 4) == b""
    assert net(tap).queue_sizes == (16,) * 5
    assert net(tap).resources == ({"MacAddress": "02:00:00:00:00:2a"},)


async def test_packets_pass_both_ways_on_the_first_pair_and_are_counted(tap: MemoryTap) -> None:
    device = net(tap)
    async with driven(device) as bench:
        rx, tx, *_ = await bench.driver.start()
        tx.add([HEADER, b"to the world"])
        bench.driver.kick(1)
        assert await arrival(tap.wires[0]) == HEADER + b"to the world"

        rx.add(writable=[12, 100])
        bench.driver.kick(0)
        tap.wires[0].send(HEADER + b"to the guest")
        await bench.interrupt(1)
        [used] = rx.collect()
        assert used.data == RX_HEADER + b"to the guest"
        assert device.counters == {
            "rx_bytes": 12,
            "rx_frames": 1,
            "tx_bytes": 12,
            "tx_frames": 1,
        }


async def test_command_puts_further_pairs_to_use_and_to_rest(tap: MemoryTap) -> None:
    async with driven(net(tap)) as bench:
        queues = await bench.driver.start()
        commands = queues[4]
        queues[3].add([HEADER, b"second"])
        bench.driver.kick(3)
        await trio.testing.wait_all_tasks_blocked()
        assert not select.select([tap.wires[1]], [], [], 0)[0]

        assert await order(bench, commands, b"\4\0", struct.pack("<H", 2)) == OK
        assert await arrival(tap.wires[1]) == HEADER + b"second"

        assert await order(bench, commands, b"\4\0", struct.pack("<H", 1)) == OK
        assert tap.used == [1, 2, 1]
        queues[3].add([HEADER, b"rests"])
        bench.driver.kick(3)
        await trio.testing.wait_all_tasks_blocked()
        assert not select.select([tap.wires[1]], [], [], 0)[0]


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (b"\0\0\1", OK),  # promiscuous
        (b"\2\0\5\0", OK),  # a VLAN
        (b"\3\0", OK),  # acknowledgement of an announcement that was not asked for
        (b"\4\0\0\0", ERR),  # no pairs
        (b"\4\0\3\0", ERR),  # more than there are
        (b"\4\0\1", ERR),  # half a number
        (b"\4\1\1\0", ERR),  # receive side scaling
        (b"\5\0" + (1 << 1).to_bytes(8, "little"), OK),
        (b"\5\0" + (1 << 12).to_bytes(8, "little"), ERR),  # the driver's own
        (b"\5\0" + (1 << 63).to_bytes(8, "little"), ERR),
        (b"\5\0\0\0", ERR),
        (b"\1\1" + MAC, ERR),
        (b"\xff\0", ERR),
        (b"\0", ERR),
        (b"", ERR),
    ],
)
async def test_commands_are_answered(tap: MemoryTap, command: bytes, answer: bytes) -> None:
    async with driven(net(tap, offloads=CHECKSUMS)) as bench:
        *_, commands = await bench.driver.start()
        parts = [command] if command else []
        commands.add(parts, [1])
        bench.driver.kick(4)
        await bench.interrupt(5)
        [used] = commands.collect()
        assert used.data == answer


async def test_command_without_room_for_its_answer_breaks_the_device(tap: MemoryTap) -> None:
    async with driven(net(tap)) as bench:
        *_, commands = await bench.driver.start()
        commands.add([b"\4\0\1\0"])
        bench.driver.kick(4)
        await bench.interrupt(0)
        assert bench.driver.status & Status.NEEDS_RESET


async def test_driver_that_knows_no_pairs_has_its_commands_after_the_first(tap: MemoryTap) -> None:
    async with driven(net(tap)) as bench:
        offered = net(tap).features | Net.RING_FEATURES | Feature.VERSION_1
        queues = await bench.driver.start(offered & ~int(NetFeature.MQ))
        assert await order(bench, queues[2], b"\0\0\1") == OK
        assert await order(bench, queues[2], b"\4\0\2\0") == ERR
        queues[3].add([HEADER, b"no queue of its"])
        bench.driver.kick(3)
        queues[1].add([HEADER, b"fine"])
        bench.driver.kick(1)
        assert await arrival(tap.wires[0]) == HEADER + b"fine"
        assert tap.used == [1]


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        (NetFeature(0), Offload(0)),
        (NetFeature.GUEST_CSUM, Offload.CSUM),
        (NetFeature.GUEST_TSO4 | NetFeature.GUEST_UFO, Offload(0)),
        (NetFeature.GUEST_CSUM | NetFeature.GUEST_ECN, Offload.CSUM),
        (
            NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4 | NetFeature.GUEST_ECN,
            Offload.CSUM | Offload.TSO4 | Offload.TSO_ECN,
        ),
        (
            CHECKSUMS | SEGMENTS | FRAGMENTS,
            Offload.CSUM | Offload.TSO4 | Offload.TSO6 | Offload.TSO_ECN | Offload.UFO,
        ),
    ],
)
async def test_tap_leaves_undone_what_the_driver_takes_undone(
    tap: MemoryTap, accepted: NetFeature, expected: Offload
) -> None:
    async with driven(net(tap, offloads=CHECKSUMS | SEGMENTS | FRAGMENTS)) as bench:
        await bench.driver.start(Feature.VERSION_1 | accepted)
        await trio.testing.wait_all_tasks_blocked()
        assert tap.offloads == [expected]


async def test_driver_may_choose_fewer_offloads_until_it_resets_the_device(tap: MemoryTap) -> None:
    async with driven(net(tap, offloads=CHECKSUMS | SEGMENTS)) as bench:
        *_, commands = await bench.driver.start()
        wanted = int(NetFeature.GUEST_CSUM).to_bytes(8, "little")
        assert await order(bench, commands, b"\5\0", wanted) == OK
        everything = tap.offloads[0]
        assert tap.offloads == [everything, Offload.CSUM]

        await bench.driver.start()
        await trio.testing.wait_all_tasks_blocked()
        assert tap.offloads[2:] == [everything]


async def test_announcement_is_shown_until_it_is_acknowledged(tap: MemoryTap) -> None:
    device = net(tap)
    device.announce()
    async with driven(device) as bench:
        *_, commands = await bench.driver.start()
        await trio.testing.wait_all_tasks_blocked()
        assert bench.driver.read_config(6, 2) == 1

        device.announce()
        await bench.interrupt(0)
        assert bench.driver.read_config(6, 2) == 3

        assert await order(bench, commands, b"\3\0") == OK
        assert bench.driver.read_config(6, 2) == 1


async def test_arrival_is_told_once_by_the_device_and_asked_of_the_driver(tap: MemoryTap) -> None:
    device = net(tap)
    device.load(device.save())
    async with driven(device) as bench:
        _, tx, *_, commands = await bench.driver.start()
        frame = await arrival(tap.wires[0])
        assert frame[:12] == bytes(12)
        assert frame[12:] == announcement(MAC)
        assert bench.driver.read_config(6, 2) == 3

        assert await order(bench, commands, b"\3\0") == OK
        tx.add([HEADER, b"next"])
        bench.driver.kick(1)
        assert await arrival(tap.wires[0]) == HEADER + b"next"


def test_announcement_is_the_documented_packet() -> None:
    mac = bytes.fromhex("02000000002a")

    assert announcement(mac).hex() == (
        "ffffffffffff" "02000000002a" "8035" "0001" "0800" "06" "04" "0003"
        "02000000002a" "00000000" "02000000002a" "00000000"
    ).ljust(120, "0")  # fmt: skip


async def test_driver_that_cannot_announce_is_not_asked(tap: MemoryTap) -> None:
    device = net(tap)
    async with driven(device) as bench:
        await bench.driver.start(Feature.VERSION_1 | NetFeature.STATUS)
        await trio.testing.wait_all_tasks_blocked()
        device.announce()
        assert bench.driver.read_config(6, 2) == 1


async def test_broken_ring_breaks_this_device_and_a_reset_mends_it(tap: MemoryTap) -> None:
    async with driven(net(tap)) as bench:
        _, tx, *_ = await bench.driver.start()
        bench.memory.write(tx.state.driver + 2, (999).to_bytes(2, "little"))
        bench.driver.kick(1)
        await bench.interrupt(0)
        assert bench.driver.status & Status.NEEDS_RESET
        assert "needs-reset" in bench.events.names

        _, tx, *_ = await bench.driver.start()
        tx.add([HEADER, b"again"])
        bench.driver.kick(1)
        assert await arrival(tap.wires[0]) == HEADER + b"again"


async def test_tap_that_goes_away_breaks_the_device_alone(tap: MemoryTap) -> None:
    async with driven(net(tap)) as bench:
        await bench.driver.start()
        await trio.testing.wait_all_tasks_blocked()
        tap.wires[0].close()
        await bench.interrupt(0)
        assert bench.driver.status & Status.NEEDS_RESET
        [reason] = [more["reason"] for _, _, more in bench.events.seen if "reason" in more]
        assert f"tap on {tap.name} failed" in reason
        assert "boot again" in reason


async def test_reset_forgets_the_pairs_in_use(tap: MemoryTap) -> None:
    async with driven(net(tap)) as bench:
        *_, commands = await bench.driver.start()
        assert await order(bench, commands, b"\4\0", struct.pack("<H", 2)) == OK
        await bench.driver.start()
        await trio.testing.wait_all_tasks_blocked()
        assert tap.used == [1, 2, 1]


async def test_limited_packets_go_on_when_their_time_has_come(tap: MemoryTap) -> None:
    limits = [PairLimits(tx=Limiter(ops=Bucket(1, 50_000_000))), PairLimits()]
    async with driven(net(tap, limits=limits)) as bench:
        _, tx, *_ = await bench.driver.start()
        start = trio.current_time()
        for number in range(4):
            tx.add([HEADER, bytes([number])])
        bench.driver.kick(1)
        got = [await arrival(tap.wires[0]) for _ in range(4)]
        assert got == [HEADER + bytes([number]) for number in range(4)]
        assert trio.current_time() - start > 0.14


async def test_packets_that_were_dropped_are_told_of_at_the_end(
    tap: MemoryTap, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with driven(net(tap)) as bench:
        rx, *_ = await bench.driver.start()
        rx.add(writable=[20])
        bench.driver.kick(0)
        tap.wires[0].send(HEADER + bytes(100))
        tap.wires[0].send(HEADER + b"fits")
        await bench.interrupt(1)
    assert "dropped 1 packets that its driver had no room for" in caplog.text


async def test_nothing_is_left_open_when_the_device_ends(tap: MemoryTap) -> None:
    before = set(os.listdir("/proc/self/fd"))
    async with driven(net(tap)) as bench:
        await bench.driver.start()
        await trio.testing.wait_all_tasks_blocked()
    assert set(os.listdir("/proc/self/fd")) == before


async def test_state_is_taken_over_with_what_the_driver_chose(
    tap: MemoryTap, stack: ExitStack
) -> None:
    device = net(tap, offloads=CHECKSUMS)
    async with driven(device) as bench:
        *_, commands = await bench.driver.start()
        await order(bench, commands, b"\4\0", struct.pack("<H", 2))
        await order(bench, commands, b"\5\0", bytes(8))
        device.announce()
        saved = device.save()
    assert saved == {
        "mac": "02:00:00:00:00:2a",
        "pairs": 2,
        "guest_offloads": 0,
        "is_announcing": True,
    }

    other = Net("lan", stack.enter_context(MemoryTap(2)), bytes(6), 16)
    other.load(saved)
    assert other.save() == saved
    assert other.read_config(0, 8) == MAC + b"\3\0"


@pytest.mark.parametrize(
    "change",
    [
        {"mac": "02:00"},
        {"mac": "zz:00:00:00:00:2a"},
        {"mac": None},
        {"pairs": 0},
        {"pairs": 3},
        {"pairs": "1"},
        {"guest_offloads": "0"},
    ],
)
def test_state_that_cannot_be_is_refused(tap: MemoryTap, change: dict[str, object]) -> None:
    state = net(tap).save() | change
    with pytest.raises(ConfigError, match="state of network lan"):
        net(tap).load(state)
