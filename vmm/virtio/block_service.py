"""How a disk's queues are served: the engine does the work, this decides when it is called.

One task serves all queues of a disk. It waits for one descriptor, behind which are the queues'
doorbells and the kernel's completions, and then makes one call.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import trio

from vmm.kvm_cffi.block import BlockEngine, Outcome
from vmm.virtio.device import StuckError

DRAIN_SECONDS = 30
"""How long I/O in flight may take to end when a disk is stopped."""

THREADS = 8
"""How many do a disk's I/O where there is no io_uring."""


async def serve_disk(engine: BlockEngine, on_errors: Callable[[], None]) -> None:
    """Serve an engine's queues until cancelled; ``on_errors`` is called when the host's I/O failed.

    Raises: GuestError when a driver broke its queue, HostError.
    Cancel: no I/O is in flight any more. Raises StuckError when some has not ended in 30 seconds.
    """
    async with trio.open_nursery() as nursery:
        crew = _Crew(engine, nursery)
        try:
            while True:
                await _wait(engine, _serve(engine, crew, on_errors))
        finally:
            await _drain(engine, crew, on_errors)
            nursery.cancel_scope.cancel()


def _serve(engine: BlockEngine, crew: _Crew, on_errors: Callable[[], None]) -> Outcome:
    outcome = engine.serve()
    if outcome & Outcome.HAS_ERRORS:
        on_errors()
    if outcome & Outcome.HAS_WORK:
        crew.put_to_work()
    return outcome


async def _wait(engine: BlockEngine, outcome: Outcome) -> None:
    """Wait until the engine is to be served again."""
    if outcome & Outcome.HAS_MORE:
        await trio.lowlevel.checkpoint()
    elif outcome & Outcome.IS_TIMED:
        with trio.move_on_after(engine.wait_seconds):
            await trio.lowlevel.wait_readable(engine.fd)
    else:
        await trio.lowlevel.wait_readable(engine.fd)


async def _drain(engine: BlockEngine, crew: _Crew, on_errors: Callable[[], None]) -> None:
    """Let what is in flight end, and take nothing new."""
    engine.stop()
    with trio.move_on_after(DRAIN_SECONDS, shield=True) as deadline:
        while True:
            outcome = _serve(engine, crew, on_errors)
            if not engine.in_flight:
                break
            await _wait(engine, outcome)
    if deadline.cancelled_caught:
        crew.abandon()
        raise StuckError(
            f"stopping of a disk with {engine.in_flight} requests in flight",
            errno.ETIMEDOUT,
            hint=f"its storage has not answered for {DRAIN_SECONDS} s; look at the host's storage",
        )


class _Crew:
    """Threads that do the I/O of an engine without a ring."""

    def __init__(self, engine: BlockEngine, nursery: trio.Nursery) -> None:
        self._engine = engine
        self._nursery = nursery
        self._limiter = trio.CapacityLimiter(THREADS)
        self._scopes: set[trio.CancelScope] = set()

    def put_to_work(self) -> None:
        """Have waiting requests performed, each in a thread, as far as there are threads."""
        while len(self._scopes) < THREADS and (request := self._engine.take()) is not None:
            # A request that was taken is completed, whoever is cancelled meanwhile.
            scope = trio.CancelScope(shield=True)
            self._scopes.add(scope)
            self._nursery.start_soon(self._work, request, scope)

    async def _work(self, first: int, scope: trio.CancelScope) -> None:
        request: int | None = first
        with scope:
            while request is not None:
                result = await trio.to_thread.run_sync(
                    self._engine.perform, request, abandon_on_cancel=True, limiter=self._limiter
                )
                self._engine.complete(request, result)
                request = self._engine.take()
        self._scopes.discard(scope)

    def abandon(self) -> None:
        """Wait no longer for threads that are stuck in the host's storage."""
        for scope in self._scopes:
            scope.cancel()
