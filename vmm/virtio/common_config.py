"""The common configuration structure: the registers by which a driver sets a device up.

Sans-I/O. A write comes back as events, plain values that the transport acts upon. What a read shows
is kept ready in ``image``, brought up to date by every change, so that the bytes can be shown to a
guest without asking.

Spec: Virtio 1.2, section 4.1.4.3.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from vmm.errors import ConfigError
from vmm.virtio.queue import QueueState
from vmm.virtio.spec import (
    COMMON_CONFIG_SIZE,
    COMMON_CONFIG_SIZE_WITH_RESET,
    NO_VECTOR,
    Common,
    Feature,
    Status,
)
from vmm.virtio.status import Negotiation, Outcome

if TYPE_CHECKING:
    from vmm.virtio.saved import SavedQueue, SavedTransport


class StatusWritten(NamedTuple):
    """The driver wrote the status; ``before`` is what it was."""

    outcome: Outcome
    before: Status


class VectorChosen(NamedTuple):
    """The driver led an interrupt source to a vector: a queue's index, or None for the
    configuration. No vector means no interrupts."""

    queue: int | None
    vector: int | None


class QueueEnabled(NamedTuple):
    """The driver handed a queue over."""

    queue: int


class QueueReset(NamedTuple):
    """The driver wants a queue back."""

    queue: int


Event = StatusWritten | VectorChosen | QueueEnabled | QueueReset


class QueueRegisters:
    """What the driver has written about one queue."""

    def __init__(
        self, max_size: int, *, vector: int = NO_VECTOR, is_resetting: bool = False
    ) -> None:
        self.max_size = max_size
        self.size = max_size
        self.vector = vector
        self.is_enabled = False
        self.is_resetting = is_resetting
        self.desc = self.driver = self.device = 0


_IMAGE = struct.Struct("<IIIIHHBBHHHHHQQQHH")
assert _IMAGE.size == COMMON_CONFIG_SIZE_WITH_RESET

_ABSENT = QueueRegisters(0, vector=0)


class CommonConfig:
    """The registers over one negotiation; ``vectors`` is the size of the MSI-X table.

    ``image`` is what a read shows, 60 bytes; of no byte of it is anything but the old or the new
    value ever seen.
    """

    def __init__(
        self,
        negotiation: Negotiation,
        queue_sizes: Sequence[int],
        vectors: int,
        image: memoryview,
    ) -> None:
        self._negotiation = negotiation
        self._queue_sizes = tuple(queue_sizes)
        self._vectors = vectors
        can_reset = bool(negotiation.offered & Feature.RING_RESET)
        self.size = COMMON_CONFIG_SIZE_WITH_RESET if can_reset else COMMON_CONFIG_SIZE
        self.image = image
        self.generation = 0
        self.lingering = Status(0)
        """What the status still shows while a reset is under way: the driver waits for zero."""
        self._queues: list[QueueRegisters] = []
        self._writers: dict[tuple[int, int], Callable[[int], list[Event]]] = {
            (Common.DEVICE_FEATURE_SELECT, 4): self._write_device_feature_select,
            (Common.DRIVER_FEATURE_SELECT, 4): self._write_driver_feature_select,
            (Common.DRIVER_FEATURE, 4): self._write_driver_feature,
            (Common.CONFIG_VECTOR, 2): self._write_config_vector,
            (Common.DEVICE_STATUS, 1): self._write_status,
            (Common.QUEUE_SELECT, 2): self._write_queue_select,
            (Common.QUEUE_SIZE, 2): self._write_queue_size,
            (Common.QUEUE_VECTOR, 2): self._write_queue_vector,
            (Common.QUEUE_ENABLE, 2): self._write_queue_enable,
            (Common.QUEUE_RESET, 2): self._write_queue_reset,
        }
        self.reset()

    def reset(self) -> None:
        """Forget everything the driver wrote."""
        self._negotiation.reset()
        self._device_feature_select = 0
        self._driver_feature_select = 0
        self._config_vector = NO_VECTOR
        self._queue_select = 0
        self._queues = [QueueRegisters(size) for size in self._queue_sizes]
        self.refresh()

    def read(self, offset: int, size: int) -> int:
        """Give bytes; zero past the structure's end."""
        return int.from_bytes(self.image[offset : min(offset + size, self.size)], "little")

    def write(self, offset: int, size: int, value: int) -> list[Event]:
        """Take the driver's write. One of another width than the field's is dropped, except that
        the addresses may be written by halves."""
        writer = self._writers.get((offset, size))
        if offset + size > self.size:
            return []
        if writer is not None:
            events = writer(value)
        elif Common.QUEUE_DESC <= offset < Common.QUEUE_NOTIFY_DATA:
            events = self._write_address(offset, size, value)
        else:
            return []
        self.refresh()
        return events

    def refresh(self) -> None:
        """Bring the image up to date."""
        negotiation = self._negotiation
        queue = self._selected or _ABSENT
        # Packed elsewhere: packing in place would show a guest that reads meanwhile half of it.
        self.image[:] = _IMAGE.pack(
            self._device_feature_select,
            negotiation.offered_page(self._device_feature_select),
            self._driver_feature_select,
            negotiation.accepted_page(self._driver_feature_select),
            self._config_vector,
            len(self._queues),
            negotiation.status or self.lingering,
            self.generation,
            self._queue_select,
            queue.size,
            queue.vector,
            queue.is_enabled,
            0 if queue is _ABSENT else self._queue_select,
            queue.desc,
            queue.driver,
            queue.device,
            0,
            queue.is_resetting,
        )

    def change_generation(self) -> None:
        """Say that the device's configuration space has changed."""
        self.generation = (self.generation + 1) & 0xFF
        self.refresh()

    def finish_reset(self) -> None:
        """Show that what was to be reset is: the device, or queues of it."""
        self.lingering = Status(0)
        for queue in self._queues:
            queue.is_resetting = False
        self.refresh()

    def queue(self, index: int) -> QueueState | None:
        """A queue as the driver set it up; None when it is not enabled."""
        queue = self._queues[index]
        if not queue.is_enabled:
            return None
        accepted = self._negotiation.accepted
        return QueueState.fresh(
            index,
            queue.size,
            queue.desc,
            queue.driver,
            queue.device,
            is_packed=bool(accepted & Feature.RING_PACKED),
            has_event_idx=bool(accepted & Feature.RING_EVENT_IDX),
            has_indirect=bool(accepted & Feature.RING_INDIRECT_DESC),
        )

    def save_queues(self) -> tuple[SavedQueue, ...]:
        """Give what the driver wrote about each queue."""
        from vmm.virtio.saved import SavedQueue  # Only now: most VMs never are.

        return tuple(
            SavedQueue(
                size=queue.size,
                vector=queue.vector,
                is_enabled=queue.is_enabled,
                desc=queue.desc,
                driver=queue.driver,
                device=queue.device,
            )
            for queue in self._queues
        )

    def registers(self) -> dict[str, int]:
        """Give the registers that belong to no queue, by the names that a snapshot has for them."""
        return {
            "generation": self.generation,
            "device_feature_select": self._device_feature_select,
            "driver_feature_select": self._driver_feature_select,
            "config_vector": self._config_vector,
            "queue_select": self._queue_select,
        }

    def load(self, state: SavedTransport) -> Iterator[VectorChosen]:
        """Take over what a snapshot kept; gives where each interrupt source leads.

        Raises: ConfigError when the device has other queues now (caller).
        """
        sizes = [queue.size for queue in state.queues]
        if len(sizes) != len(self._queue_sizes) or any(
            saved > most for saved, most in zip(sizes, self._queue_sizes, strict=True)
        ):
            raise ConfigError(
                f"The saved device has queues of {sizes} entries and here they have at most "
                f"{list(self._queue_sizes)}; give it the queues that it had"
            )
        self.generation = state.generation
        self._device_feature_select = state.device_feature_select
        self._driver_feature_select = state.driver_feature_select
        self._config_vector = self._vector(state.config_vector)
        self._queue_select = state.queue_select
        yield VectorChosen(None, self._led_to(self._config_vector))
        for index, (queue, saved) in enumerate(zip(self._queues, state.queues, strict=True)):
            queue.size, queue.vector = saved.size, self._vector(saved.vector)
            queue.is_enabled = saved.is_enabled
            queue.desc, queue.driver, queue.device = saved.desc, saved.driver, saved.device
            yield VectorChosen(index, self._led_to(queue.vector))
        self.refresh()

    @property
    def _selected(self) -> QueueRegisters | None:
        at = self._queue_select
        return self._queues[at] if at < len(self._queues) else None

    @property
    def _disabled(self) -> QueueRegisters | None:
        """The selected queue, if the driver may still change it."""
        queue = self._selected
        return None if queue is None or queue.is_enabled or queue.is_resetting else queue

    def _write_device_feature_select(self, value: int) -> list[Event]:
        self._device_feature_select = value
        return []

    def _write_driver_feature_select(self, value: int) -> list[Event]:
        self._driver_feature_select = value
        return []

    def _write_driver_feature(self, value: int) -> list[Event]:
        self._negotiation.write_features(self._driver_feature_select, value)
        return []

    def _write_status(self, value: int) -> list[Event]:
        before = self._negotiation.status
        outcome = self._negotiation.write_status(value)
        if outcome is Outcome.RESET:
            self.reset()
        return [StatusWritten(outcome, before)]

    def _write_config_vector(self, value: int) -> list[Event]:
        self._config_vector = self._vector(value)
        return [VectorChosen(None, self._led_to(self._config_vector))]

    def _write_queue_select(self, value: int) -> list[Event]:
        self._queue_select = value
        return []

    def _write_queue_size(self, value: int) -> list[Event]:
        queue = self._disabled
        is_packed = self._negotiation.accepted & Feature.RING_PACKED
        fits = queue is not None and 0 < value <= queue.max_size
        if queue is not None and fits and (is_packed or not value & (value - 1)):
            queue.size = value
        return []

    def _write_queue_vector(self, value: int) -> list[Event]:
        queue = self._selected
        if queue is None:
            return []
        queue.vector = self._vector(value)
        return [VectorChosen(self._queue_select, self._led_to(queue.vector))]

    def _write_queue_enable(self, value: int) -> list[Event]:
        queue = self._disabled
        if queue is None or value != 1:
            return []
        queue.is_enabled = True
        return [QueueEnabled(self._queue_select)]

    def _write_queue_reset(self, value: int) -> list[Event]:
        queue = self._selected
        can_reset = self._negotiation.accepted & Feature.RING_RESET
        if queue is None or value != 1 or not can_reset or not queue.is_enabled:
            return []
        vector = queue.vector
        fresh = QueueRegisters(queue.max_size, vector=vector, is_resetting=True)
        self._queues[self._queue_select] = fresh
        return [QueueReset(self._queue_select)]

    def _write_address(self, offset: int, size: int, value: int) -> list[Event]:
        queue = self._disabled
        if queue is None or size not in (4, 8) or offset % size:
            return []
        start = offset & ~7
        shift = 8 * (offset - start)
        kept = ~(((1 << 8 * size) - 1) << shift)
        name = {Common.QUEUE_DESC: "desc", Common.QUEUE_DRIVER: "driver"}.get(
            Common(start), "device"
        )
        setattr(queue, name, getattr(queue, name) & kept | value << shift)
        return []

    def _vector(self, value: int) -> int:
        """The vector that is really used: one that does not exist reads back as none."""
        return value if value < self._vectors else NO_VECTOR

    def _led_to(self, vector: int) -> int | None:
        return None if vector == NO_VECTOR else vector
