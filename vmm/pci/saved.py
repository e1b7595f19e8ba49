"""What a snapshot keeps of PCI functions."""

from typing import Annotated

from pydantic import Field

from vmm.config.units import U64, Array
from vmm.saved import Bytes, SavedState


class SavedConfiguration(SavedState):
    """A configuration space without the zeros at its end, and which BARs are being sized."""

    space: Bytes
    probed: Array[U64]


class SavedPlace(SavedState):
    """Where a function is: its bus address, and where its BAR 0 and its memory were last."""

    segment: U64
    slot: U64
    bar_kind: Annotated[str, Field(pattern="^(IO|MEMORY32|MEMORY64)$")]
    bar_address: U64
    memory_address: U64 | None = None


class SavedMsix(SavedState):
    """The control word's bits and the vector table."""

    control: U64
    table: Bytes
