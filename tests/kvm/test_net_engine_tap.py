"""The packet engine over a real tap, in a network namespace of the test's own.

The host's side is a packet socket: what it sends leaves by the interface, so the guest receives it.
"""

from __future__ import annotations

import errno
import random
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from vmm.errors import HostError
from vmm.net.interface import Interface
from vmm.net.tap import Tap, open_tap
from vmm.testing.namespace import network_namespace
from vmm.testing.packets import HEADER, PacketPair

ETHERTYPE = 0x88B5
"""For local experiments: nobody else in the namespace sends such."""

FRAME_HEADER = bytes.fromhex("02000000000202000000000188b5")
MTU = 9000
SIZES = (1, 45, 46, 47, 60, 128, 1499, 1500, 1501, 4095, 4096, MTU - 1, MTU)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        try:
            stack.enter_context(network_namespace())
            stack.enter_context(open_tap("probe", 1))
        except HostError as error:
            pytest.skip(f"taps cannot be made here: {error}")
        # Without this the interface tells its neighbours of itself.
        with open("/proc/sys/net/ipv6/conf/default/disable_ipv6", "w") as off:
            off.write("1")
        yield stack


def made(stack: ExitStack, queues: int = 1) -> Tap:
    """A tap that is up."""
    tap = stack.enter_context(open_tap("lan", queues))
    tap.interface.set_mtu(MTU)
    tap.interface.bring_up()
    return tap


def host_side(stack: ExitStack, tap: Tap) -> socket.socket:
    """A socket that sends and receives the interface's frames."""
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
    stack.enter_context(raw)
    raw.bind((tap.name, ETHERTYPE))
    raw.setblocking(False)
    return raw


def frame(size: int) -> bytes:
    """A frame with so many bytes of data, which belong to this size alone."""
    return FRAME_HEADER + random.Random(size).randbytes(size)


def test_frames_pass_both_ways_unchanged(stack: ExitStack) -> None:
    tap = made(stack)
    raw = host_side(stack, tap)
    with PacketPair(tap_fd=tap.fds[0]) as pair:
        for size in SIZES:
            pair.post(MTU + 14)
            raw.send(frame(size))
            pair.send(frame(size))
            pair.serve()
            pair.tx.collect()

            assert pair.received() == [frame(size)]
            assert raw.recv(1 << 16) == frame(size)
        count = pair.count
    data = sum(SIZES) + 14 * len(SIZES)
    assert count == (len(SIZES), data, 0, len(SIZES), data, 0)


def test_frames_that_come_together_are_one_batch_in_order(stack: ExitStack) -> None:
    tap = made(stack)
    raw = host_side(stack, tap)
    with PacketPair(256, tap_fd=tap.fds[0]) as pair:
        pair.post(*[2000] * 100)
        for size in range(100, 200):
            raw.send(frame(size))
        pair.serve()

        assert pair.received() == [frame(size) for size in range(100, 200)]
        assert pair.rx_queue.interrupts <= 2


def test_driver_without_buffers_lets_the_tap_keep_frames(stack: ExitStack) -> None:
    tap = made(stack)
    raw = host_side(stack, tap)
    with PacketPair(tap_fd=tap.fds[0]) as pair:
        pair.serve()
        for size in (100, 200, 300):
            raw.send(frame(size))
        assert not pair.is_woken()

        pair.post(2000, 2000, 2000)
        assert pair.is_woken()
        pair.serve()
        assert pair.received() == [frame(size) for size in (100, 200, 300)]


def test_frame_larger_than_its_buffer_is_dropped_and_the_next_arrives(stack: ExitStack) -> None:
    tap = made(stack)
    raw = host_side(stack, tap)
    with PacketPair(tap_fd=tap.fds[0]) as pair:
        pair.post(114)
        raw.send(frame(101))
        raw.send(frame(100))
        pair.serve()

        assert pair.received() == [frame(100)]
        assert pair.count.rx_dropped == 1


@pytest.mark.parametrize(
    "packet",
    [
        HEADER,  # no frame
        HEADER + bytes(13),  # less than Ethernet's header
        struct.pack("<BBHHHHH", 1, 0, 0, 0, 60000, 2, 0) + frame(100),  # checksum outside
        struct.pack("<BBHHHHH", 0, 77, 14, 100, 0, 0, 0) + frame(100),  # unknown segmentation
        struct.pack("<BBHHHHH", 0, 1, 5000, 100, 0, 0, 0) + frame(100),  # headers beyond the frame
        HEADER + bytes(1 << 17),  # larger than any
    ],
)
def test_packet_that_the_tap_refuses_is_dropped_and_the_next_leaves(
    stack: ExitStack, packet: bytes
) -> None:
    tap = made(stack)
    raw = host_side(stack, tap)
    with PacketPair(tap_fd=tap.fds[0]) as pair:
        pair.tx.add([packet])
        pair.send(frame(100))
        pair.serve()

        assert len(pair.tx.collect()) == 2
        assert raw.recv(1 << 16) == frame(100)
        assert (pair.count.tx_dropped, pair.count.tx_frames) == (1, 1)


def test_interface_that_is_down_loses_packets_and_goes_on_when_it_is_up(stack: ExitStack) -> None:
    tap = stack.enter_context(open_tap("lan", 1))
    raw = host_side(stack, tap)
    with PacketPair(tap_fd=tap.fds[0]) as pair:
        pair.send(frame(100))
        pair.serve()
        assert pair.count.tx_dropped == 1

        tap.interface.bring_up()
        pair.send(frame(200))
        pair.serve()
        # The socket, bound to it, has heard that the interface was down.
        with pytest.raises(OSError, match="down") as told:
            raw.recv(1 << 16)
        assert told.value.errno == errno.ENETDOWN
        assert raw.recv(1 << 16) == frame(200)


def test_queues_of_one_tap_are_served_apart(stack: ExitStack) -> None:
    tap = made(stack, 2)
    raw = host_side(stack, tap)
    with PacketPair(tap_fd=tap.fds[0]) as one, PacketPair(tap_fd=tap.fds[1]) as two:
        for pair, size in ((one, 100), (two, 200)):
            pair.send(frame(size))
            pair.serve()
            assert raw.recv(1 << 16) == frame(size)
            pair.post(*[2000] * 32)
        for size in range(60, 80):
            raw.send(frame(size))
        for pair in (one, two):
            pair.serve()
        assert sorted(one.received() + two.received(), key=len) == [
            frame(size) for size in range(60, 80)
        ]

        two.engine.set_enabled(False)
        tap.use_queues(1)
        for size in range(60, 80):
            raw.send(frame(size))
        for pair in (one, two):
            pair.serve()
        assert (len(one.received()), two.received()) == (20, [])


def test_tap_that_is_deleted_is_the_hosts_error(stack: ExitStack) -> None:
    tap = made(stack)
    with PacketPair(tap_fd=tap.fds[0]) as pair:
        pair.post(2000)
        pair.serve()
        subprocess.run(["ip", "link", "del", "lan"], check=True)
        assert not Interface("lan").exists()
        assert pair.is_woken()
        with pytest.raises(HostError, match="deleted"):
            pair.engine.serve()
