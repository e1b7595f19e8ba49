"""The exchange between a guest's vsock ports and unix sockets of the host.

A host's program connects to the listening socket, writes ``CONNECT <port>`` and a line feed, and
reads ``OK <its own port>`` when the guest has accepted; then the stream follows. A guest's program
connects to port P of the host, which is the unix socket at ``<path>_<P>``.

Nothing is done by itself: whoever drives this waits for ``fd`` and then looks.
"""

from __future__ import annotations

import logging
import math
import re
import resource
import select
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from vmm.vsock.connection import Connection, Ports
from vmm.vsock.packet import HOST_CID, STREAM, Header, Op

logger = logging.getLogger(__name__)

MOST_PEERS = 1023
"""Connections, and clients that have not said yet where to, where the host allows as many."""
MOST_REFUSALS = 256
"""That wait for the guest; what it asks for beyond them is not answered."""
ACCEPT_BATCH = 16
FIRST_OWN_PORT, OWN_PORTS = 1 << 30, 1 << 30
ANSWER_SECONDS = 2.0
"""How long the guest may take to answer a request, or a shutdown by both sides."""
ACCEPT_RETRY_SECONDS = 1.0

_LINE_BYTES = 32
_LINE = re.compile(rb"\s*connect\s+([0-9]{1,10})\s*", re.IGNORECASE)
_MOST_PORT = 0xFFFF_FFFF
_PEER_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Switch:
    """All connections of one device; a context manager that ends them.

    ``listener`` does not block and is the caller's; ``path`` is where it listens. ``clock`` gives
    seconds.
    """

    def __init__(
        self, listener: socket.socket, path: str, cid: int, clock: Callable[[], float]
    ) -> None:
        self._listener = listener
        self._path = path
        self._cid = cid
        self._clock = clock
        self._epoll = select.epoll()
        self.fd = self._epoll.fileno()
        self._callers: dict[int, socket.socket] = {}
        """Clients that have not said where to, by descriptor, the oldest first."""
        self._by_fd: dict[int, Connection] = {}
        self._by_ports: dict[Ports, Connection] = {}
        self._refusals: deque[Header] = deque()
        self._ready: deque[Connection] = deque()
        self._queued: set[Connection] = set()
        """Those in ``_ready``."""
        self._waiting: dict[Connection, float] = {}
        """Until when the guest has time to answer, the earliest first."""
        self._accept_at = math.inf
        self._next_port = 0
        self._failures = 0
        self.opened = 0
        """Connections that were ever made."""
        self._epoll.register(listener, select.EPOLLIN)

    def __enter__(self) -> Switch:
        return self

    def __exit__(self, *_: object) -> None:
        self.drop_all()
        self._epoll.close()

    def drop_all(self) -> None:
        """End every connection; the guest is not told."""
        for client in self._callers.values():
            client.close()
        for connection in self._by_fd.values():
            connection.peer.close()
        for each in (self._callers, self._by_fd, self._by_ports, self._queued, self._waiting):
            each.clear()
        self._ready.clear()
        self._refusals.clear()

    @contextmanager
    def watching(self, kicks: Sequence[int]) -> Iterator[None]:
        """Have ``fd`` tell of eventfds as well; nobody needs to read them.

        The guest's time to answer begins anew: it may have stood until now.
        """
        self._waiting = dict.fromkeys(self._waiting, self._clock() + ANSWER_SECONDS)
        for kick in kicks:
            self._epoll.register(kick, select.EPOLLIN | select.EPOLLET)
        try:
            yield
        finally:
            for kick in kicks:
                self._epoll.unregister(kick)

    @property
    def deadline(self) -> float:
        """When to look although nothing has happened, by the clock."""
        return min(self._accept_at, next(iter(self._waiting.values()), math.inf))

    # The host's side

    def look(self) -> None:
        """Hear what has happened on the host's side."""
        for fd, events in self._epoll.poll(0):
            if fd == self._listener.fileno():
                self._accept()
            elif fd in self._callers:
                self._hear_caller(fd, events)
            elif fd in self._by_fd:
                connection = self._by_fd[fd]
                connection.wake(events)
                self._note(connection)
        if self.deadline <= (now := self._clock()):
            self._look_at_clock(now)

    def _look_at_clock(self, now: float) -> None:
        if self._accept_at <= now:
            self._accept_at = math.inf
            self._epoll.register(self._listener, select.EPOLLIN)
        for connection, until in list(self._waiting.items()):
            if until > now:
                break
            connection.reset()
            self._note(connection)

    def _accept(self) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # The client left already, or the host is out of descriptors or memory.
                self._warn("accept a client", error)
                self._epoll.unregister(self._listener)
                self._accept_at = self._clock() + ACCEPT_RETRY_SECONDS
                return
            client.setblocking(False)
            self._admit(client)

    def _admit(self, client: socket.socket) -> None:
        """Let a client say where to. When all places are taken the one silent for longest goes."""
        if self._is_full and self._callers:
            self._drop_caller(next(iter(self._callers)))
        if self._is_full or not self._watch(client):
            client.close()
        else:
            self._callers[client.fileno()] = client

    @property
    def _is_full(self) -> bool:
        """Whether all places are taken: half of what the process may open is for everybody else."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = MOST_PEERS if limit == resource.RLIM_INFINITY else min(MOST_PEERS, limit // 2)
        return len(self._callers) + len(self._by_fd) >= most

    def _warn(self, what: str, error: OSError) -> None:
        """Log what the host refused: the first, and then ever fewer, for a guest can cause them."""
        self._failures += 1
        if self._failures & (self._failures - 1) == 0:
            logger.warning(
                "Vsock %s cannot %s (failure %d): %s",
                self._path,
                what,
                self._failures,
                error.strerror,
            )

    def _watch(self, peer: socket.socket) -> bool:
        """Hear of a peer from now on; whether the host can do so."""
        try:
            self._epoll.register(peer, _PEER_EVENTS)
        except OSError as error:
            self._warn("watch a peer", error)
            return False
        return True

    def _drop_caller(self, fd: int) -> None:
        self._callers.pop(fd).close()

    def _hear_caller(self, fd: int, events: int) -> None:
        """Read the first line, and nothing of what follows."""
        client = self._callers[fd]
        try:
            head = client.recv(_LINE_BYTES, socket.MSG_PEEK)
            line, end, _ = head.partition(b"\n")
            if not end and len(head) < _LINE_BYTES and not events & _GONE:
                return
            asked = _LINE.fullmatch(line) if end else None
            if asked is None or (port := int(asked[1])) > _MOST_PORT:
                self._drop_caller(fd)
                return
            client.recv(len(line) + 1)
        except BlockingIOError:
            return
        except OSError:
            self._drop_caller(fd)
            return
        del self._callers[fd]
        self._add(Connection(client, self._cid, Ports(self._own_port(port), port)))

    def _own_port(self, guest: int) -> int:
        """A port of the host's that is not used with this one of the guest's."""
        while True:
            port = FIRST_OWN_PORT + self._next_port
            self._next_port = (self._next_port + 1) % OWN_PORTS
            if Ports(port, guest) not in self._by_ports:
                return port

    def _add(self, connection: Connection) -> None:
        """Keep a connection whose peer is watched already."""
        self._by_fd[connection.peer.fileno()] = connection
        self._by_ports[connection.ports] = connection
        self.opened += 1
        self._note(connection)

    # The guest's side

    def hear(self, header: Header, payload: Sequence[memoryview]) -> None:
        """Take a packet of the guest's; ``payload`` has as many bytes as the header says."""
        if header.src_cid != self._cid:
            return  # Nobody could be answered.
        if header.dst_cid != HOST_CID or header.type != STREAM:
            self._refuse(header)
            return
        connection = self._by_ports.get(Ports(header.dst_port, header.src_port))
        if connection is None and header.op == Op.REQUEST:
            self._connect(header)
        elif connection is None:
            self._refuse(header)
        elif not connection.is_over:
            connection.hear(header, payload)
            self._note(connection)

    def _refuse(self, header: Header) -> None:
        if header.op != Op.RST and len(self._refusals) < MOST_REFUSALS:
            self._refusals.append(header.refusal())

    def _connect(self, header: Header) -> None:
        """Lead the guest to the socket that its port stands for."""
        peer = None if self._is_full else self._reach(f"{self._path}_{header.dst_port}")
        if peer is None:
            self._refuse(header)
            return
        ports = Ports(header.dst_port, header.src_port)
        self._add(Connection(peer, self._cid, ports, header))

    def _reach(self, path: str) -> socket.socket | None:
        """Connect to a unix socket, which takes no time; None when nobody listens there."""
        try:
            peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            self._warn("make a socket", error)
            return None
        with suppress(OSError):
            peer.connect(path)
            if self._watch(peer):
                return peer
        peer.close()
        return None

    @property
    def has_news(self) -> bool:
        """Whether there is something to say to the guest, as far as is known without trying."""
        return bool(self._refusals or self._ready)

    def speak(self, room: Sequence[memoryview]) -> Header | None:
        """Say the next thing to the guest, one connection after the other.

        Bytes of a stream are put into ``room``. None when there turns out to be nothing.
        """
        if self._refusals:
            return self._refusals.popleft()
        while self._ready:
            connection = self._ready.popleft()
            self._queued.discard(connection)
            header = connection.speak(room)
            self._note(connection)
            if header is not None:
                return header
        return None

    def _note(self, connection: Connection) -> None:
        """Keep the books about a connection to which something has happened."""
        if connection.is_done_with_peer and (fd := connection.peer.fileno()) >= 0:
            del self._by_fd[fd]
            connection.peer.close()
        if connection.has_news:
            if connection not in self._queued:
                self._queued.add(connection)
                self._ready.append(connection)
        elif connection.is_over and self._by_ports.get(connection.ports) is connection:
            # It may linger for what its peer has not read, and its ports be used again meanwhile.
            del self._by_ports[connection.ports]
        if connection.waits:
            self._waiting.setdefault(connection, self._clock() + ANSWER_SECONDS)
        else:
            self._waiting.pop(connection, None)
