"""The packet engine in C, driven by a driver's rings, over a wire."""

from __future__ import annotations

import os
import random
import socket

import pytest

from vmm.errors import GuestError, HostError
from vmm.kvm_cffi.limiter import Bucket, Limiter
from vmm.kvm_cffi.net import NetEngine, NetOutcome
from vmm.testing.packets import HEADER, LARGEST, PacketPair

SIZES = (
    *range(1, 130),
    *(around + by for around in (256, 512, 1500, 2048, 4096, 9000, 16384) for by in (-1, 0, 1)),
    *(32768, 65535 - 12, 65535, LARGEST - 12),
)


def packet(size: int) -> bytes:
    """Bytes that belong to this size alone."""
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("is_packed", [False, True])
def test_packets_of_every_size_arrive_whole_both_ways(is_packed: bool) -> None:
    with PacketPair(is_packed=is_packed) as pair:
        for size in SIZES:
            pair.send(packet(size))
            pair.post(size)
            pair.wire.send(HEADER + packet(size))
            pair.serve()
            pair.tx.collect()

            assert pair.arrived() == [packet(size)]
            assert pair.received() == [packet(size)]

        frames, data = len(SIZES), sum(SIZES)
        assert pair.count == (frames, data, 0, frames, data, 0)


def test_packets_that_come_together_are_received_apart_and_in_order() -> None:
    with PacketPair(256) as pair:
        for start in range(1, LARGEST - 12, 4096 + 7):
            sizes = range(start, min(start + 3, LARGEST - 12))
            pair.post(*sizes)
            for size in sizes:
                pair.wire.send(HEADER + packet(size))
            pair.serve()
            assert pair.received() == [packet(size) for size in sizes]


def test_header_and_data_may_be_cut_anywhere() -> None:
    with PacketPair() as pair:
        pair.tx.add([HEADER[:5], HEADER[5:] + b"ab", b"c", b"def"])
        pair.tx.add([HEADER + b"in one"])
        pair.rx.add(writable=[11, 1, 1, 1, 20])
        pair.rx.add(writable=[100])
        for data in (b"first packet", b"second"):
            pair.wire.send(HEADER + data)
        pair.serve()

        assert pair.arrived() == [b"abcdef", b"in one"]
        assert pair.received() == [b"first packet", b"second"]


def test_indirect_chains_carry_packets_where_they_were_agreed_on() -> None:
    with PacketPair(has_indirect=True) as pair:
        pair.send(b"out", is_indirect=True)
        pair.post(100, is_indirect=True)
        pair.wire.send(HEADER + b"in")
        pair.serve()

        assert (pair.arrived(), pair.received()) == ([b"out"], [b"in"])


def test_batch_interrupts_once_and_asks_for_no_kick_meanwhile() -> None:
    with PacketPair(has_event_idx=False) as pair:
        pair.serve()
        packets = [packet(size) for size in range(1, 31)]
        pair.send(*packets)
        pair.serve()

        assert pair.arrived() == packets
        assert pair.tx_queue.interrupts == 1
        assert len(pair.tx.collect()) == 30


def test_engine_at_rest_wakes_nobody() -> None:
    with PacketPair() as pair:
        pair.post(*[100] * 8)
        pair.serve()
        assert not pair.is_woken()

        pair.wire.send(HEADER + b"x")
        assert pair.is_woken()
        pair.serve()
        assert not pair.is_woken()


def test_driver_without_buffers_is_not_woken_for_and_gets_all_later() -> None:
    with PacketPair() as pair:
        pair.post(100)
        for number in range(10):
            pair.wire.send(HEADER + bytes([number]))
        pair.serve()
        assert pair.received() == [b"\0"]
        assert not pair.is_woken()

        pair.post(*[100] * 9)
        assert pair.is_woken()
        pair.serve()
        assert pair.received() == [bytes([number]) for number in range(1, 10)]


def test_full_wire_holds_packets_back_and_loses_none() -> None:
    with PacketPair(256) as pair:
        packets = [packet(60_000 + number) for number in range(100)]
        pair.send(*packets)
        pair.serve()
        arrived = pair.arrived()
        assert 0 < len(arrived) < 100

        while len(arrived) < 100:
            assert pair.is_woken()
            pair.serve()
            arrived += pair.arrived()
        assert arrived == packets
        assert pair.count.tx_dropped == 0


def test_receiving_goes_on_while_the_wire_is_full() -> None:
    with PacketPair(256) as pair:
        pair.send(*[packet(60_000)] * 100)
        pair.serve()
        pair.post(100)
        pair.wire.send(HEADER + b"in")
        pair.serve()

        assert pair.received() == [b"in"]


def test_packet_larger_than_its_buffer_is_dropped_and_the_next_arrives() -> None:
    with PacketPair() as pair:
        pair.post(10)
        pair.wire.send(HEADER + bytes(11))
        pair.wire.send(HEADER + b"0123456789")
        pair.serve()

        assert pair.received() == [b"0123456789"]
        assert pair.count.rx_dropped == 1


def test_buffer_of_the_most_pieces_receives_all_but_its_last() -> None:
    with PacketPair(2, has_indirect=True) as pair:
        pair.rx.add(writable=[1] * 1024, is_indirect=True)
        pair.wire.send(HEADER + packet(1012))
        pair.wire.send(HEADER + packet(1011))
        pair.serve()

        assert pair.received() == [packet(1011)]
        assert pair.count.rx_dropped == 1


@pytest.mark.parametrize("header", [[], [11], [4, 7]])
def test_packet_without_a_whole_header_breaks_the_device(header: list[int]) -> None:
    with PacketPair() as pair:
        pair.tx.add([bytes(size) for size in header], [] if header else [100])

        with pytest.raises(GuestError, match="too short"):
            pair.engine.serve()


def test_buffer_without_room_for_a_header_breaks_the_device() -> None:
    with PacketPair() as pair:
        pair.rx.add(writable=[11])
        pair.wire.send(HEADER + b"x")

        with pytest.raises(GuestError, match="too short"):
            pair.engine.serve()


@pytest.mark.parametrize("way", ["rx", "tx"])
def test_broken_ring_breaks_the_device_and_names_the_queue(way: str) -> None:
    with PacketPair() as pair:
        driver = getattr(pair, way)
        pair.memory.write(driver.state.driver + 2, (1000).to_bytes(2, "little"))

        with pytest.raises(GuestError, match="index jumps to 1000"):
            pair.engine.serve()


def test_wire_that_is_cut_is_the_hosts_error() -> None:
    with PacketPair() as pair:
        pair.serve()
        pair.wire.close()

        with pytest.raises(HostError, match="deleted"):
            pair.engine.serve()


def test_disabled_engine_carries_nothing_until_it_is_enabled_again() -> None:
    with PacketPair() as pair:
        pair.serve()
        pair.engine.set_enabled(False)
        pair.post(100)
        pair.send(b"out")
        pair.wire.send(HEADER + b"in")
        pair.serve()
        assert (pair.arrived(), pair.received()) == ([], [])

        pair.engine.set_enabled(True)
        assert pair.is_woken()
        pair.serve()
        assert (pair.arrived(), pair.received()) == ([b"out"], [b"in"])


@pytest.mark.parametrize("way", ["rx", "tx"])
def test_limited_direction_stops_and_tells_when_to_go_on(way: str) -> None:
    limiter = Limiter(Bucket(1000, 3_600_000_000_000))
    limits = {f"{way}_limiter": limiter}
    with PacketPair(**limits) as pair:  # type: ignore[arg-type]
        pair.post(*[400] * 10)
        pair.send(*[packet(400)] * 10)
        for _ in range(10):
            pair.wire.send(HEADER + packet(400))
        outcome = pair.serve()

        assert outcome == NetOutcome.IS_TIMED
        assert 0 < pair.engine.wait_seconds <= 3600
        sent, received = len(pair.arrived()), len(pair.received())
        assert (received, sent) == ((2, 10) if way == "rx" else (10, 2))
        assert not pair.is_woken()


def test_packet_that_a_limit_holds_is_delivered_at_the_stop() -> None:
    with PacketPair(rx_limiter=Limiter(ops=Bucket(1, 3_600_000_000_000))) as pair:
        pair.post(100, 100, 100)
        for number in range(3):
            pair.wire.send(HEADER + bytes([number]))
        pair.serve()
        assert pair.received() == [b"\0"]
        assert pair.rx_queue.in_flight == 1

        pair.engine.stop()
        assert pair.received() == [b"\1"]
        assert pair.rx_queue.in_flight == 0


def test_limited_packet_that_meets_a_full_wire_is_paid_for_once() -> None:
    packets = [packet(60_000 + number) for number in range(40)]
    size = sum(map(len, packets)) + 10
    with PacketPair(256, tx_limiter=Limiter(Bucket(size, 3_600_000_000_000))) as pair:
        pair.send(*packets)
        arrived: list[bytes] = []
        while len(arrived) < 40:
            pair.serve()
            arrived += pair.arrived()

        assert arrived == packets


def test_queues_of_a_pair_go_on_with_another_engine() -> None:
    with PacketPair() as pair:
        pair.post(100, 100)
        pair.wire.send(HEADER + b"one")
        pair.serve()
        pair.engine.close()
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with near, far:
            near.setblocking(False)
            engine = NetEngine(near.fileno(), pair.counters, rx=pair.rx_queue, tx=pair.tx_queue)
            with engine:
                engine.set_enabled(True)
                far.send(HEADER + b"two")
                engine.serve()

        assert pair.received() == [b"one", b"two"]


def test_pair_with_one_queue_serves_that_one() -> None:
    with PacketPair() as pair:
        pair.engine.close()
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with near, far, NetEngine(near.fileno(), pair.counters, rx=None, tx=pair.tx_queue) as only:
            for end in (near, far):
                end.setblocking(False)
            only.set_enabled(True)
            pair.send(b"out")
            far.send(HEADER + b"in")
            only.serve()
            assert far.recv(100) == HEADER + b"out"


def test_engine_closes_its_descriptor_and_leaves_the_taps() -> None:
    with PacketPair() as pair:
        fd = pair.engine.fd
        pair.engine.close()

        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
        assert pair.wire.send(HEADER + b"x") == 13
