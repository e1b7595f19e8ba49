"""A guest that writes memory faster than it can be sent is slowed until it no longer does.

Its vCPUs rest for a share of each period, and the share grows as long as the passes do not become
shorter. Devices go on: what they write is bounded by what the guest asks of them.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vmm.migration.progress import Progress

logger = logging.getLogger(__name__)

PERIOD_S = 0.1
FIRST_PERCENT = 20
STEP_PERCENT = 10
MOST_PERCENT = 99
PASSES = 2
"""In so many passes in a row the guest must have kept up before it is slowed, or slowed further."""
KEEPS_UP = 0.5
"""Passes come to an end soon where each has less than this of what the one before had."""


class Restful(Protocol):
    """A machine whose vCPUs can rest."""

    def rest(self) -> None: ...
    def go_on(self) -> None: ...


class Throttle:
    """How much the guest of a migration has to rest, in percent of its time."""

    def __init__(self) -> None:
        self.percent = 0
        self._kept_up = 0

    def after_pass(self, sent_bytes: int, dirty_bytes: int) -> bool:
        """A pass has sent so much, and so much changed meanwhile. Whether the share has grown."""
        if dirty_bytes < sent_bytes * KEEPS_UP:
            self._kept_up = 0
            return False
        self._kept_up += 1
        if self._kept_up < PASSES or self.percent == MOST_PERCENT:
            return False
        self._kept_up = 0
        grown = self.percent + STEP_PERCENT if self.percent else FIRST_PERCENT
        self.percent = min(grown, MOST_PERCENT)
        return True


class Brake:
    """Slows the vCPUs of a machine as its throttle says; made by ``open``."""

    def __init__(self, machine: Restful, progress: Progress) -> None:
        self._machine = machine
        self._progress = progress
        self._throttle = Throttle()
        self._is_on = trio.Event()

    @classmethod
    @asynccontextmanager
    async def open(cls, machine: Restful, progress: Progress) -> AsyncIterator[Brake]:
        """Slow the guest where need be until the scope is left, however that is."""
        brake = cls(machine, progress)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(brake._run)
            yield brake
            nursery.cancel_scope.cancel()

    def after_pass(self, sent_bytes: int, dirty_bytes: int) -> None:
        """A pass has sent so much, and so much changed meanwhile."""
        if self._throttle.after_pass(sent_bytes, dirty_bytes):
            self._progress.throttle_percent = self._throttle.percent
            logger.info("The guest rests for %d %% of its time", self._throttle.percent)
            self._is_on.set()

    async def _run(self) -> None:
        await self._is_on.wait()
        try:
            while True:
                rest_s = PERIOD_S * self._throttle.percent / 100
                self._machine.rest()
                await trio.sleep(rest_s)
                self._machine.go_on()
                await trio.sleep(PERIOD_S - rest_s)
        finally:
            self._machine.go_on()
