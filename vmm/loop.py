"""The root of the nursery tree: signals, the event sink, the API server and the VM owner.

run_vmm
├─ signals                       SIGTERM and SIGINT end the VMM
├─ event sink, API socket        entered here, left last
└─ nursery
   ├─ VM owner                   holds the VM; its end is the end of the VMM
   └─ API server                 imported once the machine of the command line runs
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

import trio
import trio.lowlevel

from vmm import BUILD_VERSION, FEATURES, ORIGINAL_VERSION
from vmm.cli import format_error_chain
from vmm.errors import VmmError
from vmm.events import open_event_sink
from vmm.machine.commands import Boot, Create, Restore
from vmm.machine.consoles import open_consoles
from vmm.machine.owner import VmOwner
from vmm.machine.vm import open_machine

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Iterator

    from vmm.cli import Invocation
    from vmm.config.requests import RestoreConfig
    from vmm.config.vm import VmConfig
    from vmm.gdb.server import DebugServer
    from vmm.machine.commands import Command

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT)
LEFT_ALONE_S = 0.5
EXIT_OK = 0
EXIT_FAILURE = 1


async def run_vmm(invocation: Invocation) -> int:
    """Run the VMM until it is told to end, and return the process's exit code.

    Raises: VmmError when the event monitor or the API socket cannot be opened.
    Cancel: nothing is left behind.
    """
    async with AsyncExitStack() as stack:
        signals = stack.enter_context(_receive_signals())
        events = stack.enter_context(open_event_sink(invocation.event_monitor))
        listener = None
        if invocation.api_socket is not None:
            from vmm.api.socket import open_api_socket

            listener = stack.enter_context(open_api_socket(invocation.api_socket))
        debugger = stack.enter_context(_debugger(invocation.gdb))
        events.emit("vmm", "starting")
        owner = VmOwner(
            events=events,
            open_consoles=open_consoles,
            open_machine=partial(open_machine, events=events, debug=debugger),
            no_shutdown=invocation.no_shutdown,
            confine=_confine,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_on_signal, owner, signals)
            if debugger is not None:
                nursery.start_soon(debugger.run)
            code = await _serve(owner, invocation, listener)
            nursery.cancel_scope.cancel()
        events.emit("vmm", "shutdown")
        return code


async def _serve(owner: VmOwner, invocation: Invocation, listener: socket.socket | None) -> int:
    """Run the tree until the owner ends; the API then still sends the replies it owes."""
    ended = trio.Event()
    code = EXIT_OK
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_run_owner, owner, ended)
        steps = _first_steps(invocation)
        if not await _carry_out(owner, steps):
            code = EXIT_FAILURE
        else:
            if listener is None:
                _collect_garbage_from_now_on()
            else:
                guest_runs = bool(steps)
                nursery.start_soon(partial(_serve_api, owner, listener, guest_runs=guest_runs))
                if not guest_runs:
                    nursery.start_soon(_be_ready, owner)
            await ended.wait()
        nursery.cancel_scope.cancel()
    return EXIT_FAILURE if owner.has_failed else code


async def _run_owner(owner: VmOwner, ended: trio.Event) -> None:
    await owner.run()
    ended.set()


def _first_steps(invocation: Invocation) -> tuple[tuple[Command, str], ...]:
    """What makes the VM of the command line, each with what is said when it fails."""
    if invocation.config is not None:
        create = Create(invocation.config)
        return (create, "Error creating VM"), (Boot(), "Error booting VM")
    if invocation.restore is not None:
        return ((_restore(invocation.restore), "Error restoring VM"),)
    return ()


def _restore(request: RestoreConfig) -> Command:
    """A restore; the descriptors that the command line names were inherited, and are given away."""
    named = tuple(fd for net in request.net_fds or () for fd in net.fds or ())
    return Restore(request, named)


async def _carry_out(owner: VmOwner, steps: tuple[tuple[Command, str], ...]) -> bool:
    """Make the VM of the command line; False, after saying why, when it cannot be.

    A VMM that was told to end meanwhile has done so.
    """
    for command, failure in steps:
        try:
            await owner.submit(command)
        except VmmError as error:
            if owner.is_ending:
                return True
            outer = VmmError(failure)
            outer.__cause__ = error
            print(format_error_chain(outer), file=sys.stderr)
            return False
    return True


@contextmanager
def _debugger(path: str | None) -> Iterator[DebugServer | None]:
    """Open the socket for debuggers, if there is to be one. Raises: HostError."""
    if path is None:
        yield None
        return
    from vmm.gdb.server import DebugServer  # Only now: most VMs are not debugged.
    from vmm.listener import listening

    with listening(path, "debugger") as listener:
        yield DebugServer(listener)


def _confine(config: VmConfig) -> None:
    """Give up the files that a VM does not need, if it asks for that. Raises: HostError."""
    if config.landlock_enable:
        from vmm.sandbox import confine  # Only now: most VMs do not ask.

        confine(config)


async def _serve_api(owner: VmOwner, listener: socket.socket, *, guest_runs: bool) -> None:
    """Serve the API until cancelled. Clients that came early wait in the socket's backlog."""
    if guest_runs:
        # The stack takes longer to import than a guest to boot, and the guest needs the loop.
        await trio.to_thread.run_sync(import_module, "vmm.api.server")
    from vmm.api.server import serve
    from vmm.config.info import VmmPingResponse

    _collect_garbage_from_now_on()
    about = VmmPingResponse(
        build_version=BUILD_VERSION,
        version=ORIGINAL_VERSION,
        pid=os.getpid(),
        features=FEATURES,
    )
    await serve(owner, listener, about)


async def _be_ready(owner: VmOwner) -> None:
    """Prepare for a restore once a VMM that has no VM was left alone for a while."""
    await trio.sleep(LEFT_ALONE_S)
    if not owner.has_vm:
        from vmm.snapshot.prepare import prepare_to_restore

        for _ in prepare_to_restore():
            await trio.lowlevel.checkpoint()


def _collect_garbage_from_now_on() -> None:
    """Turn the collector on, which the start had turned off, and never look at the imports."""
    gc.freeze()
    gc.enable()


async def _end_on_signal(owner: VmOwner, signals: AsyncIterator[int]) -> None:
    # Each is taken at once: one that was left over would be raised again, and kill, at the end.
    async for _ in signals:
        owner.request_end()


@contextmanager
def hold_signals() -> Iterator[None]:
    """Hold back the signals that end the VMM until ``run_vmm`` takes them, and ignore late ones.

    For the program itself: one that comes while it starts up leaves no socket behind, and one that
    comes when all is over does not change the exit code.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    for number in ENDING_SIGNALS:
        # Not yet SIG_IGN, which would throw away what is held back.
        signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        # The interpreter's own end puts back the default for every other handler.
        for number in ENDING_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def _receive_signals() -> Iterator[AsyncIterator[int]]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    with trio.open_signal_receiver(*ENDING_SIGNALS) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
        try:
            yield signals
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
