"""Port 0x80, where firmware, boot loader, kernel and user space say how far they got.

A code in one of the four ranges is logged as a warning, with the seconds since the VM started. But
Linux also writes there for no other reason than to pass a microsecond, and a guest may write as
often as it likes. So a run of one code is one line, codes outside the ranges are only for the debug
log, and no more than a burst of lines with one a second after it is written; what was left out is
counted in the next line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NoReturn

import trio

from vmm.legacy.output import OutputRing, wait_event

logger = logging.getLogger(__name__)

PORT = 0x80
READ_VALUE = 0xFF

BURST_LINES = 32
LINES_PER_SECOND = 1.0

RANGE_CODES = 0x20
RANGE_NAMES = ("firmware", "bootloader", "kernel", "userspace")


class DebugPort:
    """The codes that C keeps in a ring. ``clock`` gives the seconds since the VM started."""

    def __init__(self, ring: OutputRing, clock: Callable[[], float]) -> None:
        self._ring = ring
        self._clock = clock
        self._last = b""
        self._lines = float(BURST_LINES)
        self._refilled_at = clock()
        self._left_out = 0

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Log the guest's codes, for ever."""
        task_status.started()
        while True:
            await wait_event(self._ring.fd)
            self.report(self._ring.drain())

    def report(self, codes: bytes) -> None:
        """Log the codes that are worth a line."""
        now = self._clock()
        self._lines += (now - self._refilled_at) * LINES_PER_SECOND
        self._lines = min(self._lines, BURST_LINES)
        self._refilled_at = now
        while codes := codes.lstrip(self._last) if self._last else codes:
            if self._lines < 1:
                self._left_out += len(codes)
                self._last = codes[-1:]
                return
            self._lines -= 1
            self._last = codes[:1]
            self._log(codes[0], now)

    def _log(self, code: int, now: float) -> None:
        at = code // RANGE_CODES
        is_named = at < len(RANGE_NAMES)
        logger.log(
            logging.WARNING if is_named else logging.DEBUG,
            "Debug port: %s code %#04x at %.6f s%s",
            RANGE_NAMES[at] if is_named else "other",
            code,
            now,
            f", after {self._left_out} codes that were left out" if self._left_out else "",
        )
        self._left_out = 0
