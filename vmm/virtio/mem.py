"""Memory that the guest plugs and unplugs in blocks, up to the size that it is asked to have.

Queues: 0, requests, each answered at once.
Features: ACPI_PXM where the machine has NUMA nodes; UNPLUGGED_INACCESSIBLE, so that a driver that
knows of it never reads what it has not plugged: on a file that would take memory. A driver that
does not know of it is served all the same.
Refused: PERSISTENT_SUSPEND is newer than the specification's 1.2.
Configuration space: block size, node, where the region is, its size, how much of it may be used
(all), how much is plugged, and how much is asked for.
Snapshot: what is asked for, and which blocks are plugged.
A reset of the device leaves the blocks as they are; a machine that starts anew has none plugged.
Spec: Virtio 1.2, section 5.15.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar, Protocol

import trio

from vmm.errors import ConfigError, GuestError, HostError
from vmm.virtio.device import OWN_QUEUES, Active, VirtioDevice, serve_chains
from vmm.virtio.spec import DeviceId, Feature

if TYPE_CHECKING:
    from vmm.machine.memory_blocks import MemoryBlocks
    from vmm.virtio.chain import Chain
    from vmm.virtio.queue import Queue

logger = logging.getLogger(__name__)

QUEUE_SIZE = 128

F_ACPI_PXM = 1 << 0
F_UNPLUGGED_INACCESSIBLE = 1 << 1

CONFIG = struct.Struct("<QH6xQQQQQ")
REQUEST = struct.Struct("<H6xQH6x")
"""The type, and of which blocks: the address of the first, and their number."""
ANSWER = struct.Struct("<H6xH")
"""The outcome, and to a question for it the state."""

STEP_BYTES = 16 << 20
"""How much memory is given back in one step of the loop."""


class Kind(IntEnum):
    """The types of requests, section 5.15.6."""

    PLUG = 0
    UNPLUG = 1
    UNPLUG_ALL = 2
    STATE = 3


class Outcome(IntEnum):
    """The answers, section 5.15.6."""

    ACK = 0
    NACK = 1
    BUSY = 2
    ERROR = 3


class State(IntEnum):
    """What blocks are, all of them together, section 5.15.6."""

    PLUGGED = 0
    UNPLUGGED = 1
    MIXED = 2


class Ram(Protocol):
    """Guest memory that can be given back to the host, and got again; see ``GuestMemory``."""

    def discard(self, gpa: int, size: int) -> None: ...
    def provide(self, gpa: int, size: int) -> Iterator[None]: ...


class Mem(VirtioDevice):
    """The device of one region; the guest is asked to have ``requested_size`` bytes at first.

    ``node`` is the NUMA node that the memory is near, None on a machine without any.
    Raises: ConfigError (caller) when the region has no such size.
    """

    DEVICE_ID: ClassVar[DeviceId] = DeviceId.MEM
    RING_FEATURES: ClassVar[Feature] = OWN_QUEUES

    def __init__(
        self, id: str, ram: Ram, blocks: MemoryBlocks, requested_size: int, *, node: int | None
    ) -> None:
        super().__init__(id)
        self._ram = ram
        self._blocks = blocks
        self._node = node
        self._check(requested_size)
        self._requested_size = requested_size
        self._failures = 0

    @property
    def queue_sizes(self) -> tuple[int, ...]:
        """One queue."""
        return (QUEUE_SIZE,)

    @property
    def features(self) -> int:
        """The node is known if there are any."""
        return F_UNPLUGGED_INACCESSIBLE | (0 if self._node is None else F_ACPI_PXM)

    @property
    def ram_bytes(self) -> int:
        """What is plugged."""
        return self._blocks.plugged_size

    @property
    def requested_size(self) -> int:
        """How much the guest is asked to have, in bytes."""
        return self._requested_size

    def resize(self, size: int) -> None:
        """Ask the guest to have so many bytes in all. Raises: ConfigError (caller)."""
        self._check(size)
        if size == self._requested_size:
            raise ConfigError(
                f"The guest is asked for {size} bytes in memory zone {self.id!r} beyond those of "
                "the boot already; give another size"
            )
        self._requested_size = size
        self.config_changed()

    def read_config(self, offset: int, size: int) -> bytes:
        """The region, and how much of it is and should be plugged."""
        blocks = self._blocks
        config = CONFIG.pack(
            blocks.block_size,
            self._node or 0,
            blocks.gpa,
            blocks.size,
            blocks.size,
            blocks.plugged_size,
            self._requested_size,
        )
        return config[offset : offset + size]

    async def run_queue(self, queue: Queue, active: Active) -> None:
        """Serve requests. Raises: GuestError, HostError when memory cannot be given back."""
        await serve_chains(queue, self._serve)

    async def _serve(self, chain: Chain) -> int:
        given, room = chain.read(REQUEST.size), chain.writable_bytes
        if len(given) < REQUEST.size or room < ANSWER.size:
            raise GuestError(
                f"A request of {len(given)} bytes with room for {room} is none of virtio-mem; it "
                f"has {REQUEST.size}, and its answer {ANSWER.size}"
            )
        kind, gpa, count = REQUEST.unpack(given)
        outcome, state = await self._answer(kind, gpa, count)
        return chain.write(ANSWER.pack(outcome, state))

    async def _answer(self, kind: int, gpa: int, count: int) -> tuple[Outcome, int]:
        if kind == Kind.UNPLUG_ALL:
            for range_ in self._blocks.ranges:
                await self._unplug(range_.gpa, range_.size // self._blocks.block_size)
            return Outcome.ACK, 0
        if not self._blocks.holds(gpa, count):
            return Outcome.ERROR, 0
        plugged = self._blocks.plugged_of(gpa, count)
        match kind:
            case Kind.STATE:
                mixed = State.PLUGGED if plugged == count else State.MIXED
                return Outcome.ACK, mixed if plugged else State.UNPLUGGED
            case Kind.PLUG:
                size = count * self._blocks.block_size
                if self._blocks.plugged_size + size > self._requested_size:
                    return Outcome.NACK, 0
                return Outcome.ERROR if plugged else await self._plug(gpa, count), 0
            case Kind.UNPLUG if plugged == count:
                await self._unplug(gpa, count)
                return Outcome.ACK, 0
            case _:
                return Outcome.ERROR, 0

    async def _plug(self, gpa: int, count: int) -> Outcome:
        """Cancel: the blocks are not plugged; what memory they have got is given back later."""
        size = count * self._blocks.block_size
        try:
            for _ in self._ram.provide(gpa, size):
                await trio.lowlevel.checkpoint()
        except HostError as error:
            self._ram.discard(gpa, size)
            self._failures += 1
            if self._failures & (self._failures - 1) == 0:  # Ever fewer: the guest tries again.
                logger.warning("Memory zone %s does not grow: %s", self.id, error)
            return Outcome.BUSY
        self._blocks.mark(gpa, count, plugged=True)
        return Outcome.ACK

    async def _unplug(self, gpa: int, count: int) -> None:
        """Cancel: the blocks are still plugged, though some may have lost what was in them."""
        end = gpa + count * self._blocks.block_size
        for start in range(gpa, end, STEP_BYTES):
            self._ram.discard(start, min(STEP_BYTES, end - start))
            await trio.lowlevel.checkpoint()
        self._blocks.mark(gpa, count, plugged=False)

    def save(self) -> dict[str, object]:
        """Where the region is and how large, what is asked for, and the runs of plugged blocks."""
        return {
            "gpa": self._blocks.gpa,
            "size": self._blocks.size,
            "block_size": self._blocks.block_size,
            "requested_size": self._requested_size,
            "plugged": self._blocks.runs,
        }

    def load(self, state: Mapping[str, object]) -> None:
        """Take over what ``save`` gave. Raises: ConfigError (caller)."""
        region = {name: state.get(name) for name in ("gpa", "size", "block_size")}
        here = {name: value for name, value in self.save().items() if name in region}
        if region != here:
            raise ConfigError(
                f"The state of memory zone {self.id} is that of the region {region}, and it is "
                f"{here} here; give it the memory that it had"
            )
        requested, runs = state.get("requested_size"), _runs(state.get("plugged"))
        if not isinstance(requested, int) or runs is None or not self._blocks.replace(runs):
            raise ConfigError(f"The state of memory zone {self.id} does not say what is plugged")
        self._check(requested)
        self._requested_size = requested

    def _check(self, size: int) -> None:
        block, most = self._blocks.block_size, self._blocks.size
        if size % block:
            raise ConfigError(
                f"Memory zone {self.id!r} would have {size} bytes beyond those of the boot; it "
                f"grows in blocks of {block} bytes, give a whole number of them more"
            )
        if not 0 <= size <= most:
            raise ConfigError(
                f"Memory zone {self.id!r} would have {size} bytes beyond those of the boot, and "
                f"its hotplug_size is {most}; give no more, or reboot with more"
            )


def _runs(given: object) -> list[tuple[int, int]] | None:
    """The runs of plugged blocks as ``save`` gives them; None for anything else."""
    if not isinstance(given, list | tuple):
        return None
    runs = []
    for run in given:
        match run:
            case [int(first), int(count)]:
                runs.append((first, count))
            case _:
                return None
    return runs
