"""The device's side of a virtqueue, in C: the queue that a running guest needs.

``vmm.virtio.queue`` has the interface and the reference in Python. Source: VIRTIO 1.2, sections 2.6
to 2.8.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from vmm.errors import GuestError, InternalError
from vmm.kvm_cffi._kvm import ffi, lib
from vmm.kvm_cffi.mechanisms import allocated

if TYPE_CHECKING:
    from vmm.kvm_cffi._kvm import CData
    from vmm.kvm_cffi.guest_memory import GuestMemoryMap
    from vmm.kvm_cffi.iommu import IommuEndpoint


class RingState(Protocol):
    """What a queue is made of; ``vmm.virtio.queue.QueueState`` has this shape."""

    @property
    def index(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def desc(self) -> int: ...
    @property
    def driver(self) -> int: ...
    @property
    def device(self) -> int: ...
    @property
    def is_packed(self) -> bool: ...
    @property
    def has_event_idx(self) -> bool: ...
    @property
    def has_indirect(self) -> bool: ...
    @property
    def next_avail(self) -> int: ...
    @property
    def next_used(self) -> int: ...
    @property
    def unsignalled(self) -> int: ...


class MovableState(RingState, Protocol):
    """A state that can make another of itself."""

    def moved_to(self: State, next_avail: int, next_used: int, unsignalled: int) -> State:
        """The same queue at another position."""


State = TypeVar("State", bound=MovableState)

BREACHES = {
    lib.VK_BREACH_SIZE: (
        "its size is {0}; it must be from 1 to 32768, and a power of two if split"
    ),
    lib.VK_BREACH_ALIGNMENT: "the part of the ring at {0:#x} is not aligned as it must be",
    lib.VK_BREACH_RING_ADDRESS: "the part of the ring at {0:#x} does not lie in RAM",
    lib.VK_BREACH_POSITION: "its position is saved as {0:#x}, outside the ring",
    lib.VK_BREACH_AVAIL_INDEX: "the driver's index jumps to {0}, more than its {size} entries on",
    lib.VK_BREACH_HEAD: "chain {0} is not below the ring's size {size}",
    lib.VK_BREACH_HEAD_IN_FLIGHT: "chain {0} is made available while it is in flight",
    lib.VK_BREACH_NEXT: "a chain goes on at descriptor {0}, beyond its table",
    lib.VK_BREACH_CHAIN_LENGTH: "a chain has more than {0} descriptors or pieces of memory",
    lib.VK_BREACH_CHAIN_BYTES: "a chain has {0} bytes; it may have 4294967295",
    lib.VK_BREACH_ADDRESS: "a chain uses address {0:#x}, which is not RAM",
    lib.VK_BREACH_ORDER: "the readable buffer at {0:#x} follows a writable one",
    lib.VK_BREACH_INDIRECT_REFUSED: "the indirect table at {0:#x} was not negotiated",
    lib.VK_BREACH_INDIRECT_NESTED: "the indirect table at {0:#x} is named in another one",
    lib.VK_BREACH_INDIRECT_CHAINED: "the indirect table at {0:#x} is linked with others",
    lib.VK_BREACH_TABLE_SIZE: "an indirect table has {0} bytes; it must be a multiple of 16",
    lib.VK_BREACH_OVERRUN: "{0} descriptors are in flight in a ring of {size}",
    lib.VK_BREACH_TRANSLATION: (
        "address {0:#x} is not mapped for the device by the IOMMU, or not for such access"
    ),
    lib.VK_BREACH_TABLE_PIECES: (
        "an indirect table of {0} bytes lies in several pieces of memory behind the IOMMU; one "
        "that does may have 16384"
    ),
    lib.VK_BREACH_LOOKUPS: (
        "the buffers of a chain are in more than {0} pieces of the IOMMU's mappings; map them in "
        "larger ones, or make the request smaller"
    ),
}


class VirtqueueChain:
    """A chain taken from a ring in C; see ``vmm.virtio.chain.Chain``."""

    def __init__(self, handle: CData) -> None:
        facts = ffi.new("struct vk_chain_facts *")
        lib.vk_chain_describe(handle, facts)
        self.head: int = facts.head
        self.readable_bytes: int = facts.readable_bytes
        self.writable_bytes: int = facts.writable_bytes
        self.handle = handle
        self._readable: int = facts.readable
        self._writable: int = facts.writable
        self._read_at = 0
        self._write_at = 0

    @property
    def readable(self) -> tuple[memoryview, ...]:
        """The pieces that the device may read, in order; none is empty."""
        return self._views(0, self._readable)

    @property
    def writable(self) -> tuple[memoryview, ...]:
        """The pieces that the device may write, in order; none is empty."""
        return self._views(self._readable, self._readable + self._writable)

    def _views(self, start: int, stop: int) -> tuple[memoryview, ...]:
        size = ffi.new("uint64_t *")
        views = []
        for at in range(start, stop):
            piece = lib.vk_chain_buffer(self.handle, at, size)
            views.append(memoryview(ffi.buffer(piece, size[0])))
        return tuple(views)

    def read(self, limit: int) -> bytes:
        """Copy the next readable bytes, ``limit`` at most; fewer only when there are no more."""
        room = max(0, min(limit, self.readable_bytes - self._read_at))
        to = ffi.new("uint8_t[]", room)
        self._read_at += lib.vk_chain_read(self.handle, self._read_at, to, room)
        return bytes(ffi.buffer(to, room))

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write the next bytes; return how many there was room for."""
        with ffi.from_buffer(data) as source:
            done = lib.vk_chain_write(self.handle, self._write_at, source, len(data))
        self._write_at += done
        return int(done)


class Virtqueue(Generic[State]):
    """A queue; see ``vmm.virtio.queue.Queue`` for what its methods promise.

    ``interrupt_fd`` is the eventfd of its MSI-X vector, -1 for none; both descriptors are the
    caller's. ``handle`` is the ``vk_queue *`` for device code in C, valid while this object lives.
    With an ``endpoint`` all addresses are the device's, as the IOMMU translates them.
    Raises: GuestError (guest) when the ring cannot be used as it is set up.
    """

    def __init__(
        self,
        memory: GuestMemoryMap,
        state: State,
        *,
        kick_fd: int = -1,
        interrupt_fd: int = -1,
        endpoint: IommuEndpoint | None = None,
    ) -> None:
        self.index = state.index
        self.size = state.size
        self.kick_fd = kick_fd
        self._memory = memory
        self._endpoint = endpoint
        self._state = state
        through = ffi.NULL if endpoint is None else endpoint.handle
        made = lib.vk_queue_new(memory.handle, through, _in_c(state), kick_fd, interrupt_fd)
        self.handle = ffi.gc(allocated(made), lib.vk_queue_free)
        self._scratch = ffi.gc(allocated(lib.vk_chain_new()), lib.vk_chain_free)
        self.check()

    def check(self) -> None:
        """Raise GuestError (guest) if the guest has broken the ring."""
        value = ffi.new("uint64_t *")
        breach = lib.vk_queue_breach(self.handle, value)
        if breach != lib.VK_BREACH_NONE:
            how = BREACHES[breach].format(value[0], size=self.size)
            raise GuestError(f"Queue {self.index} is broken: {how}")

    def _checked(self, result: int) -> int:
        if result == -errno.EPROTO:
            self.check()
        return result

    @property
    def in_flight(self) -> int:
        """How many ring slots hold chains that were popped and not pushed yet."""
        return int(lib.vk_queue_in_flight(self.handle))

    @property
    def interrupts(self) -> int:
        """How often the driver was interrupted."""
        return int(lib.vk_queue_interrupts(self.handle))

    def set_interrupt_fd(self, interrupt_fd: int) -> None:
        """Interrupt by another eventfd from now on, -1 for none."""
        lib.vk_queue_set_interrupt_fd(self.handle, interrupt_fd)

    def pop(self) -> VirtqueueChain | None:
        """Take the next chain, None when there is none."""
        if not self._checked(lib.vk_queue_pop(self.handle, self._scratch)):
            return None
        copy = allocated(lib.vk_chain_copy(self._scratch))
        return VirtqueueChain(ffi.gc(copy, lib.vk_chain_free))

    def unpop(self, chain: PoppedChain) -> None:
        """Give the chain popped last back, unread; several in reverse order."""
        result = lib.vk_queue_unpop(self.handle, chain.head)
        if result == -errno.EINVAL:
            raise InternalError(
                f"Queue {self.index}: chain {chain.head} is not the last one; give back that first"
            )
        self._land(result, chain.head)

    def push(self, chain: PoppedChain, written: int) -> None:
        """Complete a chain, ``written`` bytes of which were written."""
        if isinstance(chain, VirtqueueChain):
            result = lib.vk_queue_push_chain(self.handle, chain.handle, written)
        else:
            result = lib.vk_queue_push(self.handle, chain.head, written)
        self._land(result, chain.head)

    def _land(self, result: int, head: int) -> None:
        if self._checked(result) < 0:
            raise InternalError(f"Queue {self.index} has no chain {head} in flight; push it once")

    def poll(self) -> bool:
        """Whether ``pop`` has something to give, if only an error; costs little."""
        return bool(lib.vk_queue_poll(self.handle))

    def suppress(self) -> None:
        """Ask the driver not to kick."""
        self._checked(lib.vk_queue_suppress(self.handle))

    def enable(self) -> bool:
        """Ask the driver to kick for the next chain; True when there is one already."""
        return bool(self._checked(lib.vk_queue_enable(self.handle)))

    def signal(self) -> bool:
        """Interrupt the driver if it wants that for what was pushed since the last call."""
        return bool(self._checked(lib.vk_queue_signal(self.handle)))

    def clear_kick(self) -> None:
        """Forget the kicks so far; do it before looking at the ring."""
        lib.vk_queue_clear_kick(self.handle)

    def save(self) -> State:
        """Return what a queue can be made of that goes on here."""
        state = ffi.new("struct vk_queue_state *")
        lib.vk_queue_save(self.handle, state)
        return self._state.moved_to(state.next_avail, state.next_used, state.unsignalled)


class PoppedChain(Protocol):
    """What ``push`` and ``unpop`` need to know of a chain."""

    @property
    def head(self) -> int: ...


def _in_c(state: RingState) -> CData:
    features = (
        lib.VK_QUEUE_PACKED * state.is_packed
        | lib.VK_QUEUE_EVENT_IDX * state.has_event_idx
        | lib.VK_QUEUE_INDIRECT * state.has_indirect
    )
    fields = {
        "index": state.index,
        "size": state.size,
        "features": features,
        "desc": state.desc,
        "driver": state.driver,
        "device": state.device,
        "next_avail": state.next_avail,
        "next_used": state.next_used,
        "unsignalled": state.unsignalled,
    }
    return ffi.new("struct vk_queue_state *", fields)
