"""A resource entered in a task of its own, so that one command opens it and a later one leaves it.

An ``async with`` must be left by the task that entered it, the last one entered first. The VM owner
opens consoles and machines in one command and closes them in another, so each lives in its own
task under the owner's nursery, and this object is the handle on that task.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

import trio

from vmm.errors import StateError
from vmm.kvm_cffi.check import refused

T = TypeVar("T")
R = TypeVar("R")

OPERATIONS_S = 10.0
"""How long what is under way on a context that ends may take to end before."""


class Scope(Generic[T]):
    """An entered async context manager and the way to leave it."""

    def __init__(self, value: T, cancel_scope: trio.CancelScope, left: trio.Event) -> None:
        self.value = value
        self._cancel_scope = cancel_scope
        self._left = left
        self._ending = trio.Event()
        self._operations = 0
        self._unused = trio.Event()
        self.failure: Exception | None = None
        """What ended the context, if it did not leave at somebody's wish."""

    async def leave(self) -> None:
        """Leave the context and wait until it is left. Does nothing when it already is."""
        self._cancel_scope.cancel()
        await self._left.wait()

    async def during(self, operation: Callable[[], Awaitable[R]]) -> R:
        """Carry an operation out and give what it does, unless the context ends meanwhile.

        The context is there until the operation has ended, be it cancelled: threads of its may be
        at work on what the context holds.
        Raises: what the operation does; StateError when the context has ended, or does before the
        operation is through.
        """
        through = False
        self._operations += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_when_ending, nursery.cancel_scope)
                result = await operation()
                through = True
                nursery.cancel_scope.cancel()
        except ExceptionGroup as error:
            only = sole_cause(error)
            raise only from only.__cause__
        finally:
            self._operations -= 1
            if not self._operations:
                self._unused.set()
        if not through:
            await self._left.wait()
            raise StateError("VM is not running") from self.failure
        return result

    async def _cancel_when_ending(self, cancel_scope: trio.CancelScope) -> None:
        await self._ending.wait()
        cancel_scope.cancel()

    async def give_up(self) -> None:
        """Cancel what is under way, and wait a while until nobody uses the context any more."""
        self._ending.set()
        with trio.move_on_after(OPERATIONS_S, shield=True):
            while self._operations:
                self._unused = trio.Event()
                await self._unused.wait()


async def enter(
    nursery: trio.Nursery,
    context: AbstractAsyncContextManager[T],
    on_failure: Callable[[Exception], None],
) -> Scope[T]:
    """Enter a context in a child task of ``nursery``.

    An error while entering is raised here, what the host refuses as a HostError. One that comes
    later, from what the context runs, goes to ``on_failure`` after everything in it has ended; the
    nursery lives on.
    Cancel: while entering, the context is left again. Once entered it stays until ``leave``.
    """
    scope: Scope[T] = await nursery.start(_hold, context, on_failure)
    return scope


async def _hold(
    context: AbstractAsyncContextManager[T],
    on_failure: Callable[[Exception], None],
    *,
    task_status: trio.TaskStatus[Scope[T]],
) -> None:
    left = trio.Event()
    scope: Scope[T] | None = None
    try:
        with trio.CancelScope() as cancel_scope:
            async with context as value:
                scope = Scope(value, cancel_scope, left)
                task_status.started(scope)
                # Whoever entered it leaves it, in the right order with others, even when all is
                # cancelled around them. Somebody cancelled while entering has no handle to do so.
                await trio.lowlevel.checkpoint_if_cancelled()
                cancel_scope.shield = True
                try:
                    await trio.sleep_forever()
                finally:
                    await scope.give_up()
    except Exception as error:
        only = sole_cause(error)
        if scope is None:
            if isinstance(only, OSError):  # Even of an import, where no descriptors are left.
                raise refused("open", only) from only
            raise only from only.__cause__
        scope.failure = only
        on_failure(only)
    finally:
        left.set()


def sole_cause(error: Exception) -> Exception:
    """The one error inside nested exception groups, or the group when there are several."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
