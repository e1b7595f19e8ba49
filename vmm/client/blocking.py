"""The client for scripts, notebooks and threads: it blocks."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Concatenate, ParamSpec, TypeVar

from vmm.client import calls
from vmm.client.calls import Call
from vmm.client.errors import connecting, talking
from vmm.client.http import READ_SIZE, Conversation
from vmm.client.methods import named_after

P = ParamSpec("P")
A = TypeVar("A")


def _method(call: Callable[P, Call[A]]) -> Callable[Concatenate[Client, P], A]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> A:
        return self.send(call(*args, **kwargs))

    return named_after(call, method)


class Client:
    """The VMM behind an API socket. Each request has a connection of its own; nothing stays open.

    ``timeout`` bounds each wait for the VMM in seconds; without it a request may take as long as
    it needs. Methods raise ApiError, ConnectError, NoVmmError and TimeoutError.
    """

    def __init__(self, path: str, *, timeout: float | None = None) -> None:
        self.path = path
        self.timeout = timeout

    def send(self, call: Call[A]) -> A:
        """Send a request and wait for its answer."""
        conversation = Conversation()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(self.timeout)
            with connecting(self.path):
                connection.connect(self.path)
            with talking(self.path):
                request = conversation.ask(call.method, call.path, call.body)
                # What refuses a request early may close before all of it was sent.
                with suppress(BrokenPipeError):
                    _send(connection, request, call.descriptors)
                while (reply := conversation.hear(connection.recv(READ_SIZE))) is None:
                    pass
        return call.result(reply)

    ping = _method(calls.ping)
    shutdown_vmm = _method(calls.shutdown_vmm)
    info = _method(calls.info)
    counters = _method(calls.counters)
    create = _method(calls.create)
    delete = _method(calls.delete)
    boot = _method(calls.boot)
    pause = _method(calls.pause)
    resume = _method(calls.resume)
    shutdown = _method(calls.shutdown)
    reboot = _method(calls.reboot)
    power_button = _method(calls.power_button)
    nmi = _method(calls.nmi)
    resize = _method(calls.resize)
    resize_disk = _method(calls.resize_disk)
    resize_zone = _method(calls.resize_zone)
    add_device = _method(calls.add_device)
    add_disk = _method(calls.add_disk)
    add_fs = _method(calls.add_fs)
    add_generic_vhost_user = _method(calls.add_generic_vhost_user)
    add_net = _method(calls.add_net)
    add_pmem = _method(calls.add_pmem)
    add_user_device = _method(calls.add_user_device)
    add_vdpa = _method(calls.add_vdpa)
    add_vsock = _method(calls.add_vsock)
    remove_device = _method(calls.remove_device)
    snapshot = _method(calls.snapshot)
    coredump = _method(calls.coredump)
    restore = _method(calls.restore)
    receive_migration = _method(calls.receive_migration)
    send_migration = _method(calls.send_migration)
    migration = _method(calls.migration)
    migration_cancel = _method(calls.migration_cancel)


def _send(connection: socket.socket, data: bytes, descriptors: Sequence[int]) -> None:
    sent = socket.send_fds(connection, [data], descriptors) if descriptors else 0
    connection.sendall(data[sent:])
