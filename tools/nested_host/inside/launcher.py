#!/usr/bin/python3.11 -IS
"""`python` inside the nested host: asks the warm interpreter for a fork to take its place.

Imports only modules built into the interpreter: under emulation each further import is felt. The
arguments, directory, environment and every inheritable descriptor go to the fork; signals that
arrive here are passed on; its end is this process's end. Whoever is not root, or finds no warm
interpreter, gets an ordinary one.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # as `signal` without its enums, which take time
import _socket
import marshal
import posix
import select
import sys

COLD = "/opt/venv/bin/python3.11"
WARM_SOCKETS = ("/run/nested/project.sock", "/run/nested/warm.sock")  # the warmest first
FORWARDED = (1, 2, 3, 10, 12, 14, 15, 18, 28)  # HUP INT QUIT USR1 USR2 ALRM TERM CONT WINCH


def inheritable_fds() -> list[int]:
    """List the descriptors that an exec would have kept."""
    kept = []
    for name in posix.listdir("/proc/self/fd"):
        try:
            if posix.get_inheritable(int(name)):
                kept.append(int(name))
        except OSError:
            pass  # the descriptor of the listing itself
    return kept


def connect() -> _socket.socket | None:
    """Return a connection to the warm interpreter, or None when there is none to be had."""
    for path in WARM_SOCKETS:
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            connection.connect(path)
        except OSError:
            connection.close()
        else:
            return connection
    return None


def main() -> None:
    """Hand this process's command over, and end as it ends."""
    arguments = [COLD, *sys.argv[1:]]
    fds = inheritable_fds()
    connection = connect() if posix.geteuid() == 0 else None
    if connection is None:
        posix.execv(COLD, arguments)
    environment = {k.decode("utf-8", "surrogateescape"): v.decode("utf-8", "surrogateescape")
                   for k, v in posix.environ.items()}  # fmt: skip
    umask = posix.umask(0)
    pid, is_terminal = posix.getpid(), False  # a terminal of ours stays ours
    request = marshal.dumps((arguments, posix.getcwd(), environment, fds, umask, pid, is_terminal))
    header = len(request).to_bytes(4, "big")
    passed = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
    connection.sendmsg([header], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, passed)])
    while request:
        request = request[connection.send(request) :]
    connection.setblocking(False)
    # The interpreter's C handler writes the number of each signal straight into the connection.
    _signal.set_wakeup_fd(connection.fileno(), warn_on_full_buffer=False)
    for number in FORWARDED:
        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, lambda *_: None)
    for fd in fds:
        posix.close(fd)  # so that a pipe whose last user was the fork reads as closed
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    answer = b""
    while not answer.endswith(b"\n"):
        poll.poll()
        piece = connection.recv(64)
        if not piece:
            posix._exit(125)
        answer += piece
    status = int(answer)
    if status < 0:
        _signal.set_wakeup_fd(-1)
        if -status not in (9, 19):
            _signal.signal(-status, _signal.SIG_DFL)
        posix.kill(posix.getpid(), -status)
    posix._exit(status)


main()
