"""What a snapshot keeps of the legacy devices."""

from vmm.config.units import U8, U64, Array
from vmm.saved import Bytes, SavedState


class SavedIoapic(SavedState):
    """Two registers, and a redirection entry a pin."""

    identification: U64
    selected: U64
    entries: Array[U64]


class SavedCmos(SavedState):
    """The index and the 128 bytes behind it."""

    index: U8
    memory: Bytes


class SavedUart(SavedState):
    """The registers of a 16550A and its two queues."""

    ier: U8
    lcr: U8
    mcr: U8
    lsr: U8
    msr: U8
    scr: U8
    dll: U8
    dlm: U8
    fcr: U8
    thre_pending: U8
    transmit: Bytes
    receive: Bytes


class SavedPvpanic(SavedState):
    """The kinds of event that were reported."""

    reported: Array[str]


class SavedIvshmem(SavedState):
    """The size of the memory, in bytes."""

    size: U64
