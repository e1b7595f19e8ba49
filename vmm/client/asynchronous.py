"""The client for programs on trio or asyncio."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Concatenate, ParamSpec, TypeVar

from vmm.client import calls
from vmm.client.calls import Call
from vmm.client.errors import talking
from vmm.client.http import Conversation
from vmm.client.methods import named_after
from vmm.client.streams import Stream

P = ParamSpec("P")
A = TypeVar("A")


def _method(call: Callable[P, Call[A]]) -> Callable[Concatenate[AsyncClient, P], Awaitable[A]]:
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> A:
        return await self.send(call(*args, **kwargs))

    return named_after(call, method)


class AsyncClient:
    """The VMM behind an API socket. Each request has a connection of its own; nothing stays open.

    Requests may be sent side by side. A cancelled one is carried out all the same, unheard.
    Methods raise ApiError, ConnectError and NoVmmError.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    async def send(self, call: Call[A]) -> A:
        """Send a request and wait for its answer."""
        conversation = Conversation()
        async with _connect(self.path) as stream:
            with talking(self.path):
                request = conversation.ask(call.method, call.path, call.body)
                # What refuses a request early may close before all of it was sent.
                with suppress(BrokenPipeError):
                    await stream.send(request, call.descriptors)
                while (reply := conversation.hear(await stream.receive())) is None:
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


def _connect(path: str) -> AbstractAsyncContextManager[Stream]:
    """Connect by the library that runs the calling task. Raises: ConnectError."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        from vmm.client import trio_stream

        return trio_stream.connect(path)
    from vmm.client import asyncio_stream

    return asyncio_stream.connect(path)
