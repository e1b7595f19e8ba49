"""The console device: a terminal of the guest's (hvc0) on a console of the host's.

Queues: 0, input, buffers for the device to fill; 1, output, each chain a piece of text.
Features: SIZE, EMERG_WRITE. Refused: MULTIPORT, there is one port.
Configuration space: columns and rows (16 bits each), the number of ports (32 bits), the register
for emergency writes (32 bits).
Snapshot: input that was read from the host and not yet passed to the guest.
Spec: Virtio 1.2, section 5.3.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, NoReturn

import trio

from vmm.errors import ConfigError, GuestError
from vmm.virtio.device import BATCH, OWN_QUEUES, Active, VirtioDevice, wait_kick
from vmm.virtio.spec import DeviceId, Feature

if TYPE_CHECKING:
    from vmm.console.backend import SizedBackend
    from vmm.virtio.chain import Chain
    from vmm.virtio.queue import Queue

QUEUE_SIZE = 256
RECEIVE = 0

F_SIZE = 1 << 0
F_EMERG_WRITE = 1 << 2

CONFIG = struct.Struct("<HHII")
PORTS = 1
EMERGENCY_OFFSET = 8

MAX_WRITE_BYTES = 1 << 20
"""Text in one chain; Linux writes 32 KiB at most."""
BATCH_BYTES = 64 << 10
"""Text that is handed over at once."""
EMERGENCY_CHARACTERS = 4096
"""Emergency writes that may wait; more are lost."""


class Console(VirtioDevice):
    """A console with one port on ``backend``; ``run_emergency`` runs beside it."""

    DEVICE_ID: ClassVar[DeviceId] = DeviceId.CONSOLE
    RING_FEATURES: ClassVar[Feature] = OWN_QUEUES

    def __init__(self, id: str, backend: SizedBackend) -> None:
        super().__init__(id)
        self._backend = backend
        self._input = b""
        self._is_size_told = False
        # There is no queue yet when a guest needs this, so it waits for no one.
        self._cry, self._cries = trio.open_memory_channel[bytes](EMERGENCY_CHARACTERS)

    @property
    def queue_sizes(self) -> tuple[int, ...]:
        """Input and output."""
        return (QUEUE_SIZE, QUEUE_SIZE)

    @property
    def features(self) -> int:
        """A size, and output without a queue."""
        return F_SIZE | F_EMERG_WRITE

    def read_config(self, offset: int, size: int) -> bytes:
        """The terminal's size now (0 by 0 where there is none), and the number of ports."""
        rows, columns = self._backend.size or (0, 0)
        return CONFIG.pack(columns, rows, PORTS, 0)[offset : offset + size]

    def write_config(self, offset: int, data: bytes) -> None:
        """Print a character of a guest that has no queues, or none any more."""
        if offset == EMERGENCY_OFFSET:
            with suppress(trio.WouldBlock):
                self._cry.send_nowait(data[:1])

    async def run_emergency(self) -> None:
        """Print emergency writes, whether the driver is there or not, until cancelled."""
        async for character in self._cries:
            await self._backend.write(character)

    def last_words(self) -> bytes:
        """Take the emergency writes that nobody has printed yet."""
        words = b""
        with suppress(trio.WouldBlock):
            while True:
                words += self._cries.receive_nowait()
        return words

    async def run_queues(self, active: Active) -> None:
        """Pass text both ways, and changes of the terminal's size to the guest."""
        self._is_size_told = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._backend.watch_size, self.config_changed)
            nursery.start_soon(super().run_queues, active)

    async def run_queue(self, queue: Queue, active: Active) -> None:
        """Serve one direction. Raises: GuestError."""
        await (self._receive(queue) if queue.index == RECEIVE else self._transmit(queue))

    async def _receive(self, queue: Queue) -> NoReturn:
        """Fill the guest's buffers. While it has none, keys wait where the host keeps them."""
        while True:
            self._input = self._input or await self._backend.read()
            while self._input:
                chain = await _next_chain(queue)
                if not chain.writable_bytes:
                    raise GuestError("A buffer for the console's input has no room")
                written = chain.write(self._input)
                self._input = self._input[written:]
                queue.push(chain, written)
            queue.signal()

    async def _transmit(self, queue: Queue) -> NoReturn:
        """Print what the guest writes. A chain is the guest's again before its text is printed."""
        while True:
            queue.suppress()
            while (text := _take_text(queue)) is not None:
                self._tell_size()
                await self._backend.write(text)
            if not queue.enable():
                await wait_kick(queue.kick_fd)

    def _tell_size(self) -> None:
        """Tell the size once by itself: Linux does not look, and not before its port is there."""
        if not self._is_size_told and self._backend.size is not None:
            self.config_changed()
        self._is_size_told = True

    def save(self) -> dict[str, object]:
        """The input on its way to the guest."""
        return {"input": self._input.hex()}

    def load(self, state: Mapping[str, object]) -> None:
        """Take over what ``save`` gave. Raises: ConfigError (caller)."""
        try:
            self._input = bytes.fromhex(str(state["input"]))
        except (KeyError, ValueError) as error:
            raise ConfigError(f"The state of console {self.id} has no input in hex") from error


async def _next_chain(queue: Queue) -> Chain:
    while (chain := queue.pop()) is None:
        queue.signal()
        if not queue.enable():
            await wait_kick(queue.kick_fd)
        queue.suppress()
    return chain


def _take_text(queue: Queue) -> bytes | None:
    """Complete a batch of chains and return their text; None when there are none."""
    texts: list[bytes] = []
    size = 0
    while len(texts) < BATCH and size < BATCH_BYTES and (chain := queue.pop()) is not None:
        if chain.readable_bytes > MAX_WRITE_BYTES:
            raise GuestError(
                f"A write to the console has {chain.readable_bytes} bytes; {MAX_WRITE_BYTES} is "
                "the limit"
            )
        texts.append(chain.read(MAX_WRITE_BYTES))
        size += len(texts[-1])
        queue.push(chain, 0)
    if not texts:
        return None
    queue.signal()
    return b"".join(texts)
