"""One stream between a port of the guest's and a unix socket of the host's.

It hears packets from the guest and wakes from the socket; what it has for the guest it says when it
is asked to, one packet at a time. Data goes from and to guest memory without a copy, unless the
host's peer does not read.

Spec: Virtio 1.2, section 5.10.6.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence
from enum import Enum, auto
from typing import Final, NamedTuple

from vmm.virtio.chain import span
from vmm.vsock.credit import ROOM_BYTES, Credit
from vmm.vsock.packet import HOST_CID, STREAM, Closed, Header, Op


class Ports(NamedTuple):
    """What a connection is known by."""

    host: int
    guest: int


class Phase(Enum):
    """How far a connection has come."""

    ASKED = auto()
    """The host has asked the guest, which has not answered."""
    OPEN = auto()
    OVER = auto()
    """The guest has closed it or is told so; the host may still get what is left for it."""


class News:
    """What the guest is to be told beside the stream's bytes; plain numbers, as in ``Closed``."""

    REQUEST: Final = 1
    RESPONSE: Final = 2
    RESET: Final = 4
    CREDIT: Final = 8
    SHUTDOWN: Final = 16


class Connection:
    """A connection; ``peer`` is the host's socket, which does not block, and is its own.

    ``asked_by`` is the guest's REQUEST, None when the host asks.
    """

    def __init__(
        self, peer: socket.socket, guest_cid: int, ports: Ports, asked_by: Header | None = None
    ) -> None:
        self.peer = peer
        self.ports = ports
        self._guest_cid = guest_cid
        self._credit = Credit()
        self._phase = Phase.ASKED
        self._news: int = News.REQUEST
        if asked_by is not None:
            self._phase, self._news = Phase.OPEN, News.RESPONSE
            self._credit.hear(asked_by.buf_alloc, asked_by.fwd_cnt)
        self._outbox = bytearray()
        """What the guest sent and the peer has not taken."""
        self._guest_closed = 0
        self._host_closed = 0
        self._is_readable = True
        self._is_hung_up = False

    @property
    def is_over(self) -> bool:
        """Whether the guest has nothing to say here any more."""
        return self._phase is Phase.OVER

    @property
    def is_done_with_peer(self) -> bool:
        """Whether the peer gets nothing more."""
        return self.is_over and not self._outbox

    @property
    def waits(self) -> bool:
        """Whether the guest has to answer before long."""
        is_closing = self._phase is Phase.OPEN and self._host_closed == Closed.BOTH
        return self._phase is Phase.ASKED or is_closing

    @property
    def has_news(self) -> bool:
        """Whether there is something to say to the guest, as far as is known without trying."""
        return bool(self._news) or self._can_read

    @property
    def _can_read(self) -> bool:
        return (
            self._is_readable
            and self._phase is Phase.OPEN
            and not self._host_closed & Closed.SEND
            and not self._guest_closed & Closed.RECEIVE
            and self._credit.allowance > 0
        )

    def hear(self, header: Header, payload: Sequence[memoryview]) -> None:
        """Take a packet of the guest's; one that may not come now resets the connection.

        ``payload`` has as many bytes as the header says.
        """
        self._credit.hear(header.buf_alloc, header.fwd_cnt)
        is_open = self._phase is Phase.OPEN
        match header.op:
            case Op.RST:
                self._end()
            case Op.RESPONSE if self._phase is Phase.ASKED:
                self._phase = Phase.OPEN
                self._greet()
            case Op.RW if is_open and not self._guest_closed & Closed.SEND:
                self._forward(payload, header.length)
            case Op.SHUTDOWN if is_open:
                self._hear_shutdown(header.flags & Closed.BOTH)
            case Op.CREDIT_UPDATE if is_open:
                pass
            case Op.CREDIT_REQUEST if is_open:
                self._news |= News.CREDIT
            case _:
                self.reset()

    def _greet(self) -> None:
        """Tell the peer that it is connected; nothing can be in its way yet."""
        line = b"OK %d\n" % self.ports.host
        if self._send([line]) != len(line):
            self.reset()

    def _forward(self, payload: Sequence[memoryview], size: int) -> None:
        if size > ROOM_BYTES - len(self._outbox):
            self.reset()  # More than it was allowed.
            return
        done = 0 if self._outbox else self._send(payload)
        self._take(done)
        for piece in payload:
            self._outbox += piece[done:]
            done = max(0, done - len(piece))
        if self._host_closed & Closed.RECEIVE:
            self._drop_outbox()

    def _take(self, count: int) -> None:
        """The peer has taken bytes, or nobody will."""
        self._credit.taken(count)
        if self._credit.is_stale and self._phase is Phase.OPEN:
            self._news |= News.CREDIT

    def _drop_outbox(self) -> None:
        self._take(len(self._outbox))
        self._outbox.clear()

    def _send(self, pieces: Sequence[bytes | bytearray | memoryview]) -> int:
        """Give the peer what it takes; how much that is. One that takes no more is noted."""
        if self._host_closed & Closed.RECEIVE:
            return 0
        try:
            return self.peer.sendmsg(pieces, (), socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError:
            self._close_host(Closed.RECEIVE)
            return 0

    def _flush(self) -> None:
        """Give the peer what has waited for it, and then the end, if the guest has closed."""
        if self._outbox:
            done = self._send([self._outbox])
            del self._outbox[:done]
            self._take(done)
            if self._host_closed & Closed.RECEIVE:
                self._drop_outbox()
        if not self._outbox and self._guest_closed & Closed.SEND:
            self._shut_peer(socket.SHUT_WR)

    def _hear_shutdown(self, closed: int) -> None:
        self._guest_closed |= closed
        if self._guest_closed == Closed.BOTH:
            self._phase = Phase.OVER
            self._news = News.RESET
        if closed & Closed.RECEIVE:
            self._shut_peer(socket.SHUT_RD)
        self._flush()

    def _shut_peer(self, how: int) -> None:
        try:
            self.peer.shutdown(how)
        except OSError:  # It has left.
            self._is_hung_up = True

    def wake(self, events: int) -> None:
        """Hear what epoll says of the peer, which it is told at the edge only."""
        if events & select.EPOLLHUP:
            self._is_hung_up = True
            # What it sent before is read first, unless that has been done or will not be.
            if self._host_closed & Closed.SEND or self._guest_closed & Closed.RECEIVE:
                self._close_host(Closed.BOTH)
        if events & ~select.EPOLLOUT:
            self._is_readable = True
        if events & (select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR):
            self._flush()

    def _close_host(self, closed: int) -> None:
        if self._phase is Phase.OPEN and closed & ~self._host_closed:
            self._news |= News.SHUTDOWN
        self._host_closed |= closed

    def speak(self, room: Sequence[memoryview]) -> Header | None:
        """Say the next thing to the guest; bytes of the stream go to ``room``.

        None when there turns out to be nothing.
        """
        for news, op in (
            (News.RESET, Op.RST),
            (News.REQUEST, Op.REQUEST),
            (News.RESPONSE, Op.RESPONSE),
        ):
            if self._news & news:
                self._news &= ~news
                return self._header(op)
        if self._can_read and (count := self._read(room)):
            return self._header(Op.RW, length=count)
        if self._news & News.SHUTDOWN:
            self._news &= ~News.SHUTDOWN
            return self._header(Op.SHUTDOWN, flags=self._host_closed)
        return self._header(Op.CREDIT_UPDATE) if self._news & News.CREDIT else None

    def _read(self, room: Sequence[memoryview]) -> int:
        """Read what the guest has room for; 0 when the peer has nothing now, or no more."""
        try:
            count, *_ = self.peer.recvmsg_into(span(room, 0, self._credit.allowance))
        except BlockingIOError:
            self._is_readable = False
            return 0
        except OSError:
            self.reset()
            return 0
        if count == 0:
            self._close_host(Closed.BOTH if self._is_hung_up else Closed.SEND)
        self._credit.sent(count)
        return count

    def _header(self, op: Op, *, length: int = 0, flags: int = 0) -> Header:
        self._news &= ~News.CREDIT
        host, guest = self.ports
        credit = self._credit.tell()
        return Header(HOST_CID, self._guest_cid, host, guest, length, STREAM, op, flags, *credit)

    def reset(self) -> None:
        """Tell the guest that it is over; the peer sees it at once."""
        self._end()
        self._news = News.RESET

    def _end(self) -> None:
        self._phase = Phase.OVER
        self._news = 0
        self._outbox.clear()
