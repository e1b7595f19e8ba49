"""A pair of virtio-net's queues with a driver, the engine in C, and a wire instead of a tap.

with PacketPair() as pair:
    pair.post(2048)
    pair.wire.send(HEADER + b"to the guest")
    pair.serve()
    assert pair.received() == [b"to the guest"]

    pair.send(b"from the guest")
    pair.serve()
    assert pair.arrived() == [b"from the guest"]
"""

from __future__ import annotations

import os
import select
import socket
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from vmm.kvm_cffi import Virtqueue
from vmm.kvm_cffi.closing import Closing
from vmm.kvm_cffi.net import NetCount, NetCounters, NetEngine, NetOutcome
from vmm.testing.driver import Driver, PackedDriver, SplitDriver
from vmm.testing.memory import FakeMemory
from vmm.virtio.queue import QueueState

if TYPE_CHECKING:
    from vmm.kvm_cffi.limiter import Limiter

HEADER = bytes(12)
RX_HEADER = bytes((0,) * 10 + (1, 0))
"""What the device tells the driver: one buffer, nothing left undone."""

LARGEST = 65550
"""Bytes of the largest packet, header and all."""

WIRE_BYTES = 1 << 20


class PacketPair(Closing):
    """A context manager; ``tap_fd`` is used instead of the wire if it is given."""

    def __init__(
        self,
        size: int = 64,
        *,
        is_packed: bool = False,
        has_event_idx: bool = True,
        has_indirect: bool = False,
        tap_fd: int | None = None,
        rx_limiter: Limiter | None = None,
        tx_limiter: Limiter | None = None,
        memory: FakeMemory | None = None,
        index: int = 0,
    ) -> None:
        self.memory = memory or FakeMemory((0, 64 << 20))
        self._map = self.memory.map()
        self._stack = ExitStack()
        make = PackedDriver if is_packed else SplitDriver
        self.rx: Driver
        self.tx: Driver
        self.rx, self.tx = (
            make(
                self.memory,
                size,
                index=index + at,
                has_event_idx=has_event_idx,
                has_indirect=has_indirect,
            )
            for at in (0, 1)
        )
        self.rx_queue, self.tx_queue = (self._queue(each) for each in (self.rx, self.tx))
        near, self.wire = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (near, self.wire):
            self._stack.enter_context(end)
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, WIRE_BYTES)
        self.counters = NetCounters()
        self.engine = NetEngine(
            near.fileno() if tap_fd is None else tap_fd,
            self.counters,
            rx=self.rx_queue,
            tx=self.tx_queue,
            rx_limiter=rx_limiter,
            tx_limiter=tx_limiter,
        )
        self._stack.enter_context(self.engine)
        self.engine.set_enabled(True)

    def _queue(self, driver: Driver) -> Virtqueue[QueueState]:
        fds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2)]
        for fd in fds:
            self._stack.callback(os.close, fd)
        return Virtqueue(self._map, driver.state, kick_fd=fds[0], interrupt_fd=fds[1])

    @property
    def count(self) -> NetCount:
        """What the engine has counted."""
        return self.counters.read()

    def post(self, *sizes: int, is_indirect: bool = False) -> None:
        """Give the device a buffer for each size, which are bytes of packets without header."""
        for size in sizes:
            self.rx.add(writable=[12, size] if size else [12], is_indirect=is_indirect)
        self._kick(self.rx, self.rx_queue)

    def send(self, *packets: bytes, is_indirect: bool = False) -> None:
        """Give the device packets to send."""
        for packet in packets:
            parts = [HEADER, packet] if packet else [HEADER]
            self.tx.add(parts, is_indirect=is_indirect)
        self._kick(self.tx, self.tx_queue)

    @staticmethod
    def _kick(driver: Driver, queue: Virtqueue[QueueState]) -> None:
        if driver.wants_kick():
            os.eventfd_write(queue.kick_fd, 1)

    def is_woken(self) -> bool:
        """Whether the engine's descriptor says that there is something to serve."""
        return bool(select.select([self.engine.fd], [], [], 0)[0])

    def serve(self) -> NetOutcome:
        """Serve as the loop would: as often as it is woken, or has more."""
        outcome = self.engine.serve()
        while outcome & NetOutcome.HAS_MORE or self.is_woken():
            outcome = self.engine.serve()
        return outcome

    def received(self) -> list[bytes]:
        """The packets that the driver has received since the last call, without headers."""
        found = []
        for used in self.rx.collect():
            assert used.data[:12] == RX_HEADER
            found.append(used.data[12:])
        return found

    def arrived(self) -> list[bytes]:
        """The packets that have arrived at the wire's far end since the last call."""
        found = []
        with suppress(BlockingIOError):
            while True:
                packet = self.wire.recv(LARGEST + 1)
                assert packet[:12] == HEADER
                found.append(packet[12:])
        return found

    def close(self) -> None:
        """Let go of everything."""
        self._stack.close()
