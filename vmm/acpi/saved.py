"""What a snapshot keeps of the registers of ACPI hot plug and events."""

from vmm.config.units import U8, U32, U64, Array
from vmm.saved import SavedState


class SavedGed(SavedState):
    """The notifications that the guest has not read."""

    pending: U8


class SavedPciHotplug(SavedState):
    """The bits that the guest has not read of each segment, and the segment that is selected."""

    inserted: Array[U32]
    removed: Array[U32]
    selected: U64


class SavedCpuHotplug(SavedState):
    """The status of each possible processor, those asked back, and the one that is selected."""

    status: Array[U8]
    wanted_back: Array[U32]
    selected: U64


class SavedMemoryHotplug(SavedState):
    """Base and size of the memory in each slot, the new ones, and the slot that is selected."""

    slots: Array[tuple[U64, U64]]
    inserting: Array[U32]
    selected: U64
