"""Packets arrive whole, in order and once, whatever the driver and the wire do in between."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vmm.testing.packets import HEADER, PacketPair

SMALL = st.integers(0, 70)
LARGE = st.integers(0, 9000)
ROOM = 10_000


class Packets(RuleBasedStateMachine):
    """A driver that sends and posts buffers, a wire that fills up and is drained, in any order."""

    @initialize(
        size=st.sampled_from((4, 16, 64)),
        is_packed=st.booleans(),
        has_event_idx=st.booleans(),
        has_indirect=st.booleans(),
    )
    def start(self, size: int, is_packed: bool, has_event_idx: bool, has_indirect: bool) -> None:
        self.pair = PacketPair(
            size, is_packed=is_packed, has_event_idx=has_event_idx, has_indirect=has_indirect
        )
        self.is_indirect = has_indirect
        self.next_out = self.next_in = 0
        self.sent: list[bytes] = []
        self.put: list[bytes] = []
        self.arrived: list[bytes] = []
        self.received: list[bytes] = []

    def numbered(self, number: int, size: int) -> bytes:
        return number.to_bytes(4, "little") + bytes([number % 251]) * size

    @precondition(lambda self: self.pair.tx.free >= 2)
    @rule(size=st.one_of(SMALL, LARGE))
    def driver_sends(self, size: int) -> None:
        packet = self.numbered(len(self.sent), size)
        self.pair.send(packet, is_indirect=self.is_indirect)
        self.sent.append(packet)

    @precondition(lambda self: self.pair.rx.free >= 2)
    @rule()
    def driver_posts_a_buffer(self) -> None:
        self.pair.post(ROOM, is_indirect=self.is_indirect)

    @rule()
    def driver_collects(self) -> None:
        self.pair.tx.collect()
        self.received += self.pair.received()

    @rule(size=st.one_of(SMALL, LARGE), count=st.integers(1, 20))
    def wire_brings(self, size: int, count: int) -> None:
        for _ in range(count):
            packet = self.numbered(len(self.put), size)
            try:
                self.pair.wire.send(HEADER + packet)
            except BlockingIOError:
                return
            self.put.append(packet)

    @rule()
    def wire_takes(self) -> None:
        self.arrived += self.pair.arrived()

    @rule()
    def loop_serves_when_woken(self) -> None:
        while self.pair.is_woken():
            self.pair.serve()

    @invariant()
    def what_arrived_is_a_beginning_of_what_was_sent(self) -> None:
        assert self.arrived == self.sent[: len(self.arrived)]
        assert self.received == self.put[: len(self.received)]

    def teardown(self) -> None:
        if not hasattr(self, "pair"):
            return
        with self.pair:
            while len(self.arrived) < len(self.sent) or len(self.received) < len(self.put):
                before = len(self.arrived) + len(self.received)
                self.driver_collects()
                while self.pair.rx.free >= 2:
                    self.driver_posts_a_buffer()
                self.loop_serves_when_woken()
                self.wire_takes()
                self.driver_collects()
                # A wake that never comes would end here.
                assert len(self.arrived) + len(self.received) > before
            assert (self.arrived, self.received) == (self.sent, self.put)
            assert self.pair.count.rx_dropped == self.pair.count.tx_dropped == 0


TestPackets = Packets.TestCase
TestPackets.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
