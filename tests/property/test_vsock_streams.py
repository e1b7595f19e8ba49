"""What one side of a vsock connection sends is what the other gets, however it is cut up.

A guest that keeps to its credit and a host's program that reads when it likes take turns in any
order; at the end everything has come, in order, and each side has seen the other's end.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.vsock.connection import Connection, Ports
from vmm.vsock.credit import Credit
from vmm.vsock.packet import HOST_CID, STREAM, Closed, Header, Op

MANY_TURNS = 5000
"""More than any stream here needs at the end."""

CID, PORTS = 3, Ports(host=5000, guest=1024)
SIZES = st.sampled_from([1, 7, 1000, 5000, 40_000, 1 << 16])
STEPS = st.lists(
    st.tuples(st.sampled_from(["guest sends", "host sends", "host reads", "guest hears"]), SIZES),
    max_size=40,
)


def numbered(start: int, size: int) -> bytes:
    """A stretch of one long stream that repeats nowhere soon."""
    first = start // 4
    words = b"".join(number.to_bytes(4, "big") for number in range(first, first + size // 4 + 2))
    return words[start % 4 : start % 4 + size]


class Pair:
    """A connection, the guest on one side of it and a host's program on the other."""

    def __init__(self, peer: socket.socket, host: socket.socket, room: int) -> None:
        self.host = host
        self.room = room
        self.connection = Connection(peer, CID, PORTS, self._packet(Op.REQUEST, room=room))
        self.sent = self.heard = 0
        self.host_sent = self.host_read = 0
        self.credit = (0, 0)
        self.ops: list[int] = []

    def _packet(self, op: Op, size: int = 0, *, flags: int = 0, room: int | None = None) -> Header:
        taken = 0 if room is not None else self.heard
        return Header(
            CID,
            HOST_CID,
            PORTS.guest,
            PORTS.host,
            size,
            STREAM,
            op,
            flags,
            self.room if room is None else room,
            taken,
        )

    def guest_sends(self, size: int) -> None:
        """As much as there is credit for."""
        room, taken = self.credit
        size = min(size, room - (self.sent - taken))
        if size > 0:
            data = numbered(self.sent, size)
            pieces = [memoryview(data)[: size // 3], memoryview(data)[size // 3 :]]
            self.connection.hear(self._packet(Op.RW, size), pieces)
            self.sent += size

    def host_sends(self, size: int) -> None:
        """As much as the kernel takes."""
        with suppress(BlockingIOError):
            self.host_sent += self.host.send(numbered(self.host_sent, size))

    def host_reads(self, size: int) -> None:
        """Some of what there is."""
        with suppress(BlockingIOError):
            data = self.host.recv(size)
            assert data == numbered(self.host_read, len(data))
            self.host_read += len(data)
        self._wake()

    def guest_hears(self, size: int) -> None:
        """One packet, if there is one; it then has room for as much again."""
        self._wake()
        buffer = bytearray(size)
        header = self.connection.speak(
            [memoryview(buffer)[: size // 2], memoryview(buffer)[size // 2 :]]
        )
        if header is None:
            return
        self.ops.append(header.op)
        self.credit = (header.buf_alloc, header.fwd_cnt)
        assert header.length <= self.room
        if header.op == Op.RW:
            assert buffer[: header.length] == numbered(self.heard, header.length)
            self.heard += header.length
            self.connection.hear(self._packet(Op.CREDIT_UPDATE), [])

    def _wake(self) -> None:
        self.connection.wake(select.EPOLLIN | select.EPOLLOUT)

    def guest_ends(self) -> None:
        self.connection.hear(self._packet(Op.SHUTDOWN, flags=Closed.SEND), [])


@contextmanager
def pair(room: int) -> Iterator[Pair]:
    peer, host = socket.socketpair()
    with peer, host:
        peer.setblocking(False)
        host.setblocking(False)
        yield Pair(peer, host, room)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.sampled_from([1000, 1 << 16, 1 << 18]))
def test_both_streams_come_whole_and_in_order(steps: list[tuple[str, int]], room: int) -> None:
    with pair(room) as both:
        both.guest_hears(1)
        assert both.ops == [Op.RESPONSE]
        for name, size in steps:
            getattr(both, name.replace(" ", "_"))(size)
        both.guest_ends()
        both.host.shutdown(socket.SHUT_WR)

        for _ in range(MANY_TURNS):
            both.guest_hears(1 << 16)
            both.host_reads(1 << 16)
            if Op.SHUTDOWN in both.ops and both.host_read == both.sent:
                break

        assert (both.heard, both.host_read) == (both.host_sent, both.sent)
        assert Op.SHUTDOWN in both.ops
        assert both.host.recv(1) == b""


@given(st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 32) - 1), st.integers(0, 1 << 33))
def test_allowance_of_any_claim_is_a_number_of_bytes(room: int, taken: int, sent: int) -> None:
    credit = Credit()
    credit.sent(sent)
    credit.hear(room, taken)

    assert 0 <= credit.allowance <= room
