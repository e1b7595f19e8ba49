"""The balloon: RAM that the guest leaves to the host, by page numbers that it sends.

Queues: 0, inflate, and 1, deflate, each chain an array of page numbers of 32 bits; 2, reporting if
agreed on, each chain free memory itself, as if to be written.
Features: DEFLATE_ON_OOM and REPORTING as configured. Refused: MUST_TELL_HOST, a page that is taken
back is there on its first use; STATS_VQ, FREE_PAGE_HINT, PAGE_POISON; ACCESS_PLATFORM, as its
driver in Linux does not agree to it: pages are always the guest's own.
Configuration space: pages wanted and pages given, 32 bits each; the driver writes the latter.
Snapshot: both.
Spec: Virtio 1.2, section 5.5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol

import trio

from vmm.errors import ConfigError, GuestError
from vmm.virtio.device import OWN_QUEUES, Active, VirtioDevice, serve_chains
from vmm.virtio.spec import DeviceId, Feature

if TYPE_CHECKING:
    from vmm.virtio.chain import Chain
    from vmm.virtio.queue import Queue

QUEUE_SIZE = 128
INFLATE, DEFLATE, REPORTING = range(3)

F_DEFLATE_ON_OOM = 1 << 2
F_REPORTING = 1 << 5

CONFIG = struct.Struct("<II")
ACTUAL_OFFSET, ACTUAL_BYTES = 4, 4
PAGE = 4096
"""The unit of the protocol, whatever pages the guest has."""
MAX_PAGES = (1 << 32) - 1
STEP_BYTES = 1024
"""Page numbers that are served in one step of the loop: what Linux sends at once."""


class Ram(Protocol):
    """Guest memory of which parts can be given back to the host; see ``GuestMemory``."""

    def discard(self, gpa: int, size: int) -> None: ...
    def gpa_of(self, view: memoryview) -> int: ...


class Balloon(VirtioDevice):
    """A balloon of ``size`` bytes at first."""

    DEVICE_ID: ClassVar[DeviceId] = DeviceId.BALLOON
    RING_FEATURES: ClassVar[Feature] = OWN_QUEUES
    IS_TRANSLATED: ClassVar[bool] = False

    def __init__(
        self, id: str, ram: Ram, size: int, *, deflate_on_oom: bool, free_page_reporting: bool
    ) -> None:
        super().__init__(id)
        self._ram = ram
        self._has_reporting = free_page_reporting
        self._features = F_DEFLATE_ON_OOM * deflate_on_oom | F_REPORTING * free_page_reporting
        self._wanted_pages = _pages(size)
        self._actual_pages = 0

    @property
    def queue_sizes(self) -> tuple[int, ...]:
        """Inflate, deflate, and reporting where it is offered."""
        return (QUEUE_SIZE,) * (3 if self._has_reporting else 2)

    @property
    def features(self) -> int:
        """As configured."""
        return self._features

    @property
    def ram_bytes(self) -> int:
        """What the guest says it has given, off its RAM."""
        return -self._actual_pages * PAGE

    def resize(self, size: int) -> None:
        """Ask the guest to give so many bytes in all. Raises: ConfigError (caller)."""
        self._wanted_pages = _pages(size)
        self.config_changed()

    def read_config(self, offset: int, size: int) -> bytes:
        """Pages wanted and given."""
        config = CONFIG.pack(self._wanted_pages, self._actual_pages)
        return config[offset : offset + size]

    def write_config(self, offset: int, data: bytes) -> None:
        """Hear how many pages the guest has given."""
        if offset == ACTUAL_OFFSET and len(data) == ACTUAL_BYTES:
            self._actual_pages = int.from_bytes(data, "little")

    async def run_queue(self, queue: Queue, active: Active) -> None:
        """Serve one queue. Raises: GuestError, HostError when memory cannot be given back."""
        serve = {INFLATE: self._inflate, DEFLATE: self._deflate, REPORTING: self._report}
        await serve_chains(queue, serve[queue.index])

    async def _inflate(self, chain: Chain) -> int:
        while numbers := chain.read(STEP_BYTES):
            for gpa, size in _ranges(numbers):
                self._ram.discard(gpa, size)
            await trio.lowlevel.checkpoint()
        return 0

    async def _deflate(self, chain: Chain) -> int:
        """There is nothing to do for a page before the guest uses it."""
        return 0

    async def _report(self, chain: Chain) -> int:
        for view in chain.writable:
            self._ram.discard(self._ram.gpa_of(view), len(view))
            await trio.lowlevel.checkpoint()
        return 0

    def save(self) -> dict[str, object]:
        """Pages wanted and given."""
        return {"wanted_pages": self._wanted_pages, "actual_pages": self._actual_pages}

    def load(self, state: Mapping[str, object]) -> None:
        """Take over what ``save`` gave. Raises: ConfigError (caller)."""
        match state:
            case {"wanted_pages": int(wanted), "actual_pages": int(actual)} if (
                min(wanted, actual) >= 0 and max(wanted, actual) <= MAX_PAGES
            ):
                self._wanted_pages, self._actual_pages = wanted, actual
            case _:
                raise ConfigError(f"The state of balloon {self.id} has no numbers of 32 bits")


def _pages(size: int) -> int:
    pages = size // PAGE
    if not 0 <= pages <= MAX_PAGES:
        raise ConfigError(
            f"A balloon of {size} bytes is not possible; give at most {MAX_PAGES * PAGE}"
        )
    return pages


def _ranges(numbers: bytes) -> Iterator[tuple[int, int]]:
    """The ranges of memory that an array of page numbers stands for, neighbours joined."""
    if len(numbers) % 4:
        raise GuestError(f"{len(numbers)} bytes are no array of page numbers; each has 4")
    pages = sorted({number for (number,) in struct.iter_unpack("<I", numbers)})
    first = last = pages[0]
    for page in pages[1:]:
        if page != last + 1:
            yield first * PAGE, (last + 1 - first) * PAGE
            first = page
        last = page
    yield first * PAGE, (last + 1 - first) * PAGE
