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


class MigrationPhase(StrEnum):
    """How far a migration is; the last three are ends."""

    CONNECTING = "Connecting"
    MEMORY = "Memory"
    STATE = "State"
    COMPLETED = "Completed"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


class MigrationInfo(ConfigModel):
    """A migration under way, or the last one. Sizes in bytes, rates in bytes a second.

    ``iteration`` counts the passes over RAM from 0; ``dirty_bytes`` are those still to be sent or
    written anew since. ``throttle_percent`` is the share of its time for which the guest is made to
    rest so that it writes less; at the end, what that came to. ``downtime_ms`` is an estimate until
    the VM has moved.
    """

    is_incoming: bool
    phase: Choice[MigrationPhase]
    iteration: U64
    memory_bytes: U64
    transferred_bytes: U64
    dirty_bytes: U64
    dirty_rate: U64
    throttle_percent: U64
    throughput: U64
    elapsed_ms: U64
    remaining_ms: U64 | None = None
    downtime_ms: U64 | None = None
    error: Text | None = None


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
