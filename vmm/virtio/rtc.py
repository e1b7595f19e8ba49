"""The clock: tells a guest the host's wall-clock time.

Queues: 0, requests, each a readable message and room for the answer.
Features: none. Refused: ALARM. Configuration space: none.
There is one clock, number 0: UTC that may be smeared around leap seconds, as the host's is. It has
no cross-timestamps.
Snapshot: nothing.
Spec: Virtio 1.4 (draft), RTC device.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar, Final

from vmm.errors import GuestError
from vmm.virtio.device import OWN_QUEUES, Active, VirtioDevice, serve_chains
from vmm.virtio.spec import DeviceId, Feature

if TYPE_CHECKING:
    from vmm.virtio.chain import Chain
    from vmm.virtio.queue import Queue

QUEUE_SIZE = 256

CLOCKS: Final = 1
UTC_MAYBE_SMEARED: Final = 4
SMEAR_UNSPECIFIED: Final = 0

MAX_REQUEST_BYTES: Final = 32
HEAD: Final = struct.Struct("<H6x")
CLOCK_HEAD: Final = struct.Struct("<H6xH6x")
STATUS: Final = struct.Struct("<B7x")


class Request(IntEnum):
    """Types of message."""

    READ = 0x0001
    CFG = 0x1000
    CLOCK_CAP = 0x1001
    CROSS_CAP = 0x1002


class Outcome(IntEnum):
    """The status of an answer."""

    OK = 0
    EOPNOTSUPP = 2
    ENODEV = 3
    EINVAL = 4
    EIO = 5


class Rtc(VirtioDevice):
    """A clock that shows ``now``, in nanoseconds since 1970."""

    DEVICE_ID: ClassVar[DeviceId] = DeviceId.CLOCK
    RING_FEATURES: ClassVar[Feature] = OWN_QUEUES

    def __init__(self, id: str, now: Callable[[], int]) -> None:
        super().__init__(id)
        self._now = now

    @property
    def queue_sizes(self) -> tuple[int, ...]:
        """One queue."""
        return (QUEUE_SIZE,)

    async def run_queue(self, queue: Queue, active: Active) -> None:
        """Answer requests. Raises: GuestError."""
        await serve_chains(queue, self._serve)

    async def _serve(self, chain: Chain) -> int:
        answer = self._answer(chain.read(MAX_REQUEST_BYTES))
        if chain.writable_bytes < len(answer):
            answer = STATUS.pack(Outcome.EINVAL)
        if chain.writable_bytes < len(answer):
            raise GuestError(
                f"A request to the clock has room for {chain.writable_bytes} bytes; an answer has "
                f"{STATUS.size} at least"
            )
        return chain.write(answer)

    def _answer(self, request: bytes) -> bytes:
        if len(request) < HEAD.size:
            return STATUS.pack(Outcome.EINVAL)
        (kind,) = HEAD.unpack_from(request)
        if kind == Request.CFG:
            return STATUS.pack(Outcome.OK) + struct.pack("<H6x", CLOCKS)
        if kind not in set(Request):
            return STATUS.pack(Outcome.EOPNOTSUPP)
        if len(request) < CLOCK_HEAD.size:
            return STATUS.pack(Outcome.EINVAL)
        _, clock = CLOCK_HEAD.unpack_from(request)
        if clock >= CLOCKS:
            return STATUS.pack(Outcome.ENODEV)
        return STATUS.pack(Outcome.OK) + self._about_clock(Request(kind))

    def _about_clock(self, kind: Request) -> bytes:
        match kind:
            case Request.READ:
                return struct.pack("<Q", self._now())
            case Request.CLOCK_CAP:
                return struct.pack("<BBB5x", UTC_MAYBE_SMEARED, SMEAR_UNSPECIFIED, 0)
            case _:
                return bytes(8)  # No flag says that there are cross-timestamps.
