"""Cancellation at a chosen step of a program: what a schedule of the real world might do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class _Cancel(trio.abc.Instrument):
    """Cancels a scope when the tasks of this run have made so many steps."""

    def __init__(self, step: int, scope: trio.CancelScope) -> None:
        self._left = step
        self._scope = scope

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._left == 0:
            self._scope.cancel()
        self._left -= 1


@contextmanager
def cancelled_at_step(step: int) -> Iterator[None]:
    """Cancel what is inside when the program has made ``step`` steps from here on.

    A step is what one task does between two checkpoints.
    """
    with trio.CancelScope() as scope:
        instrument = _Cancel(step, scope)
        trio.lowlevel.add_instrument(instrument)
        try:
            yield
        finally:
            trio.lowlevel.remove_instrument(instrument)
