"""The bodies of requests other than configurations of devices."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from vmm.config.model import ConfigModel
from vmm.config.units import (
    U32,
    U64,
    Array,
    ByteSize,
    Choice,
    Descriptor,
    HostPath,
    PositiveU32,
    PositiveU64,
    Text,
)


class VmResize(ConfigModel):
    """New amounts of vCPUs and RAM; what is absent stays as it is. Sizes in bytes."""

    desired_vcpus: PositiveU32 | None = None
    desired_ram: ByteSize | None = None
    desired_balloon: ByteSize | None = None


class VmResizeDisk(ConfigModel):
    """A disk's new size in bytes."""

    id: Text
    desired_size: ByteSize


class VmResizeZone(ConfigModel):
    """A memory zone's new size in bytes."""

    id: Text
    desired_ram: ByteSize


class VmRemoveDevice(ConfigModel):
    """The device to take away."""

    id: Text


class VmSnapshotConfig(ConfigModel):
    """Where a snapshot goes."""

    destination_url: Text


class VmCoredumpData(ConfigModel):
    """Where a core dump of the guest goes."""

    destination_url: Text


class MemoryRestoreMode(StrEnum):
    """When the guest's RAM is read: all of it at first, or each page when it is touched."""

    COPY = "Copy"
    ONDEMAND = "OnDemand"


class RestoredNetConfig(ConfigModel):
    """The descriptors that replace those a network device had."""

    id: Text
    fds: Array[Descriptor] | None = None
    num_fds: U64 | None = None

    def to_json(self) -> dict[str, object]:
        """Give plain data; without the numbers, their count still says whose is which."""
        shown = super().to_json()
        return shown if self.fds is None else {"num_fds": len(self.fds)} | shown


class RestoredDeviceConfig(ConfigModel):
    """The descriptor that replaces the one a VFIO device had."""

    id: Text
    fd: Descriptor | None = None


class ZoneUpdate(ConfigModel):
    """The host NUMA node that a memory zone moves to."""

    id: Text
    host_numa_node: U32


class RestoreConfig(ConfigModel):
    """Which snapshot is restored, and what replaces the descriptors it had."""

    FLAG: ClassVar[str] = "--restore"

    source_url: Text
    prefault: bool = False
    memory_restore_mode: Choice[MemoryRestoreMode] = MemoryRestoreMode.COPY
    net_fds: Array[RestoredNetConfig] | None = None
    vfio_fds: Array[RestoredDeviceConfig] | None = None
    iommufd_fd: Descriptor | None = None
    zone_updates: Array[ZoneUpdate] | None = None
    resume: bool = False


class MigrationMode(StrEnum):
    """Whether RAM moves before or after the guest does."""

    PRECOPY = "Precopy"
    POSTCOPY = "Postcopy"


class TimeoutStrategy(StrEnum):
    """What happens to a migration that takes too long."""

    CANCEL = "Cancel"
    IGNORE = "Ignore"


class ReceiveMigrationData(ConfigModel):
    """Where a migration is awaited, and what replaces the descriptors that the VM had."""

    receiver_url: Text
    tls_dir: HostPath | None = None
    memory_mode: Choice[MigrationMode] = MigrationMode.PRECOPY
    zone_updates: Array[ZoneUpdate] | None = None
    net_fds: Array[RestoredNetConfig] | None = None
    vfio_fds: Array[RestoredDeviceConfig] | None = None
    iommufd_fd: Descriptor | None = None


class SendMigrationData(ConfigModel):
    """Where a VM moves to, and how long that may take."""

    destination_url: Text
    local: bool = False
    downtime_ms: PositiveU64 = 300
    timeout_s: PositiveU64 = 3600
    timeout_strategy: Choice[TimeoutStrategy] = TimeoutStrategy.CANCEL
    connections: Annotated[int, Field(ge=1, le=128)] = 1
    tls_dir: HostPath | None = None
    memory_mode: Choice[MigrationMode] = MigrationMode.PRECOPY
    preserve_source: bool = False
