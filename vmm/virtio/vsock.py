"""The socket device: streams between the guest's ports and the host's sockets.

Queues: 0, receive, buffers for packets to the guest; 1, transmit, packets from it; 2, events.
Features: IN_ORDER. Refused: STREAM and SEQPACKET; without either a driver has streams.
Configuration space: the guest's context identifier, 64 bits; read-only.
Snapshot: nothing; who takes a snapshot over tells the driver that all connections are gone.
Spec: Virtio 1.2, section 5.10.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, ClassVar, NoReturn, Protocol

import trio

from vmm.errors import GuestError
from vmm.virtio.chain import span
from vmm.virtio.device import BATCH, OWN_QUEUES, Active, VirtioDevice
from vmm.virtio.spec import DeviceId, Feature
from vmm.vsock.packet import HEADER_BYTES, PAYLOAD_LIMIT, Header

if TYPE_CHECKING:
    from vmm.virtio.queue import Queue

QUEUE_SIZE = 256
RECEIVE, TRANSMIT, EVENT = range(3)

TRANSPORT_RESET = struct.pack("<I", 0)
"""The event of section 5.10.6.7: all connections are gone."""

STEP_NS = 200_000
"""How long the loop is kept at most, but for the packet that is under way."""


class Exchange(Protocol):
    """The connections and the host's side of them; see ``vmm.vsock.switch.Switch``."""

    fd: int
    opened: int

    @property
    def deadline(self) -> float: ...
    @property
    def has_news(self) -> bool: ...
    def watching(self, kicks: Sequence[int]) -> AbstractContextManager[None]: ...
    def look(self) -> None: ...
    def hear(self, header: Header, payload: Sequence[memoryview]) -> None: ...
    def speak(self, room: Sequence[memoryview]) -> Header | None: ...
    def drop_all(self) -> None: ...


class Vsock(VirtioDevice):
    """A socket device of context identifier ``cid``; the exchange outlives it."""

    DEVICE_ID: ClassVar[DeviceId] = DeviceId.VSOCK
    RING_FEATURES: ClassVar[Feature] = OWN_QUEUES | Feature.IN_ORDER

    def __init__(self, id: str, cid: int, exchange: Exchange) -> None:
        super().__init__(id)
        self._cid = cid
        self._exchange = exchange
        self._is_starved = False
        """The guest has given no buffer for what there is to say."""
        self._owes_reset = False
        self._rx_packets = self._rx_bytes = 0
        self._tx_packets = self._tx_bytes = 0

    @property
    def queue_sizes(self) -> tuple[int, ...]:
        """Receive, transmit, events."""
        return (QUEUE_SIZE,) * 3

    @property
    def counters(self) -> dict[str, int]:
        """Connections made, packets and bytes of streams each way, as the guest sees the ways."""
        return {
            "connections": self._exchange.opened,
            "rx_packets": self._rx_packets,
            "rx_bytes": self._rx_bytes,
            "tx_packets": self._tx_packets,
            "tx_bytes": self._tx_bytes,
        }

    def read_config(self, offset: int, size: int) -> bytes:
        """The context identifier."""
        return struct.pack("<Q", self._cid)[offset : offset + size]

    async def run_queues(self, active: Active) -> NoReturn:
        """Carry packets in one task. Raises: GuestError."""
        receive, transmit = active.queue(RECEIVE), active.queue(TRANSMIT)
        event = active.queue(EVENT)
        with self._exchange.watching([queue.kick_fd for queue in active.queues]):
            while True:
                for queue in active.queues:
                    queue.suppress()
                if event is not None:
                    self._pay_reset(event)
                if self._serve(receive, transmit) or self._has_late(receive, transmit):
                    await trio.lowlevel.checkpoint()
                    continue
                with trio.move_on_at(self._exchange.deadline):
                    await trio.lowlevel.wait_readable(self._exchange.fd)

    def _serve(self, receive: Queue | None, transmit: Queue | None) -> bool:
        """Carry packets both ways for a while; whether there may be more."""
        until = time.monotonic_ns() + STEP_NS
        while True:
            self._exchange.look()
            sent = transmit is not None and self._transmit(transmit, until)
            received = receive is not None and self._receive(receive, until)
            if not sent and not received:
                return False
            if time.monotonic_ns() >= until:
                return True

    def _has_late(self, receive: Queue | None, transmit: Queue | None) -> bool:
        """Ask to be kicked; whether what that would tell of is there already."""
        is_late = transmit is not None and transmit.enable()
        return (receive is not None and self._is_starved and receive.enable()) or is_late

    def _transmit(self, queue: Queue, until: int) -> bool:
        """Take packets from the guest; whether there was one."""
        count = 0
        while count < BATCH and (chain := queue.pop()) is not None:
            head = chain.read(HEADER_BYTES)
            if len(head) < HEADER_BYTES:
                raise GuestError(
                    f"A packet of {chain.readable_bytes} bytes is shorter than its header of "
                    f"{HEADER_BYTES}"
                )
            header = Header.decode(head)
            room = chain.readable_bytes - HEADER_BYTES
            if header.length > room:
                raise GuestError(f"A packet says {header.length} bytes follow; there are {room}")
            self._exchange.hear(header, span(chain.readable, HEADER_BYTES, header.length))
            queue.push(chain, 0)
            count += 1
            self._tx_bytes += header.length
            if time.monotonic_ns() >= until:
                break
        self._tx_packets += count
        if count:
            queue.signal()
        return bool(count)

    def _receive(self, queue: Queue, until: int) -> bool:
        """Give the guest packets; whether there was one."""
        count = 0
        self._is_starved = False
        while count < BATCH and self._exchange.has_news:
            chain = queue.pop()
            if chain is None:
                self._is_starved = True
                break
            if chain.writable_bytes <= HEADER_BYTES:
                raise GuestError(
                    f"A buffer for packets has {chain.writable_bytes} bytes; it must have more "
                    f"than the {HEADER_BYTES} of a header"
                )
            header = self._exchange.speak(span(chain.writable, HEADER_BYTES, PAYLOAD_LIMIT))
            if header is None:
                queue.unpop(chain)
                break
            chain.write(header.encode())
            queue.push(chain, HEADER_BYTES + header.length)
            count += 1
            self._rx_bytes += header.length
            if time.monotonic_ns() >= until:
                break
        self._rx_packets += count
        if count:
            queue.signal()
        return bool(count)

    def _pay_reset(self, queue: Queue) -> None:
        """Tell the driver that its connections are gone, if it has to be told."""
        while self._owes_reset:
            chain = queue.pop()
            if chain is not None:
                queue.push(chain, chain.write(TRANSPORT_RESET))
                queue.signal()
                self._owes_reset = False
            elif not queue.enable():
                return

    def reset(self) -> None:
        """End every connection."""
        self._exchange.drop_all()
        self._owes_reset = False

    def load(self, state: Mapping[str, object]) -> None:
        """Have the driver told that its connections are gone: their other ends are elsewhere."""
        self._owes_reset = True
