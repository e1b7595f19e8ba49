"""``NumaConfig``: which CPUs and memory are near each other in the guest."""

from typing import ClassVar

from vmm.config.model import ConfigModel
from vmm.config.units import U8, U16, U32, Array, Text


class NumaDistance(ConfigModel):
    """How far another node is; 10 is the node itself (ACPI SLIT)."""

    destination: U32
    distance: U8


class NumaConfig(ConfigModel):
    """One NUMA node of the guest."""

    FLAG: ClassVar[str] = "--numa"

    guest_numa_id: U32
    cpus: Array[U32] | None = None
    distances: Array[NumaDistance] | None = None
    memory_zones: Array[Text] | None = None
    pci_segments: Array[U16] | None = None
    device_id: Text | None = None
