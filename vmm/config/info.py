"""What the API answers: ``VmInfo``, ``VmmPingResponse``, ``PciDeviceInfo`` and their parts."""

from enum import StrEnum

from vmm.config.model import ConfigModel
from vmm.config.units import U64, Array, Choice, Text
from vmm.config.vm import VmConfig

VmCounters = dict[str, dict[str, int]]
"""Of each device with counters, each counter."""


class VmState(StrEnum):
    """Where a VM is in its life."""

    CREATED = "Created"
    RUNNING = "Running"
    SHUTDOWN = "Shutdown"
    PAUSED = "Paused"


class DeviceNode(ConfigModel):
    """A device in the tree: what it occupies, and what hangs on it."""

    id: Text
    resources: Array[dict[str, object]] = ()
    parent: Text | None = None
    children: Array[Text] = ()
    pci_bdf: Text | None = None


class VmInfo(ConfigModel):
    """A VM's configuration and state; ``memory_actual_size`` in bytes."""

    config: VmConfig
    state: Choice[VmState]
    memory_actual_size: U64 | None = None
    device_tree: dict[str, DeviceNode] | None = None


class PciDeviceInfo(ConfigModel):
    """Where a device that was added has its place: ``0000:00:05.0``."""

    id: Text
    bdf: Text


class VmmPingResponse(ConfigModel):
    """Which program answers."""

    version: Text
    build_version: Text | None = None
    pid: U64 | None = None
    features: Array[Text] | None = None
