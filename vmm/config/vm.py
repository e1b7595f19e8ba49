"""``VmConfig``: the whole configuration of a VM."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, model_validator

from vmm.config.console import ConsoleConfig, ConsoleMode, DebugConsoleConfig, SerialConfig
from vmm.config.cpus import DEFAULT_VCPUS, CpusConfig
from vmm.config.memory import DEFAULT_SIZE, MemoryConfig
from vmm.config.model import ConfigModel, LaterModel, join_spellings
from vmm.config.payload import PayloadConfig
from vmm.config.pci import PciSegmentConfig
from vmm.config.platform import PlatformConfig
from vmm.config.rng import DEFAULT_SOURCE, RngConfig, RtcConfig
from vmm.config.units import Array
from vmm.config.values import Cli

if TYPE_CHECKING:
    from vmm.config.balloon import BalloonConfig
    from vmm.config.device import DeviceConfig, UserDeviceConfig, VdpaConfig
    from vmm.config.disk import DiskConfig
    from vmm.config.fs import FsConfig
    from vmm.config.generic_vhost_user import GenericVhostUserConfig
    from vmm.config.ivshmem import IvshmemConfig
    from vmm.config.landlock import LandlockConfig
    from vmm.config.net import NetConfig
    from vmm.config.numa import NumaConfig
    from vmm.config.pmem import PmemConfig
    from vmm.config.rate_limit import RateLimitGroupConfig
    from vmm.config.tpm import TpmConfig
    from vmm.config.vsock import VsockConfig
else:
    BalloonConfig = LaterModel("balloon", "BalloonConfig", "--balloon")
    DeviceConfig = LaterModel("device", "DeviceConfig", "--device")
    UserDeviceConfig = LaterModel("device", "UserDeviceConfig", "--user-device")
    VdpaConfig = LaterModel("device", "VdpaConfig", "--vdpa")
    DiskConfig = LaterModel("disk", "DiskConfig", "--disk")
    FsConfig = LaterModel("fs", "FsConfig", "--fs")
    GenericVhostUserConfig = LaterModel(
        "generic_vhost_user", "GenericVhostUserConfig", "--generic-vhost-user"
    )
    IvshmemConfig = LaterModel("ivshmem", "IvshmemConfig", "--ivshmem")
    LandlockConfig = LaterModel("landlock", "LandlockConfig", "--landlock-rules")
    NetConfig = LaterModel("net", "NetConfig", "--net")
    NumaConfig = LaterModel("numa", "NumaConfig", "--numa")
    PmemConfig = LaterModel("pmem", "PmemConfig", "--pmem")
    RateLimitGroupConfig = LaterModel("rate_limit", "RateLimitGroupConfig", "--rate-limit-group")
    TpmConfig = LaterModel("tpm", "TpmConfig", "--tpm")
    VsockConfig = LaterModel("vsock", "VsockConfig", "--vsock")

# The defaults are known to be right, and to validate them would cost the start of every VM the
# making of their validators.


def _default_cpus() -> CpusConfig:
    # Here and below: constants need no validation, and a validator takes 1 ms to build.
    return CpusConfig.model_construct(boot_vcpus=DEFAULT_VCPUS, max_vcpus=DEFAULT_VCPUS)


def _default_memory() -> MemoryConfig:
    return MemoryConfig.model_construct(size=DEFAULT_SIZE)


def _default_rng() -> RngConfig:
    return RngConfig.model_construct(src=DEFAULT_SOURCE)


def _default_serial() -> SerialConfig:
    return SerialConfig.model_construct(mode=ConsoleMode.NULL)


def _default_console() -> ConsoleConfig:
    return ConsoleConfig.model_construct(mode=ConsoleMode.TTY)


def _default_debug_console() -> DebugConsoleConfig:
    return DebugConsoleConfig.model_construct(mode=ConsoleMode.OFF)


class VmConfig(ConfigModel):
    """Everything a VM is made of. Nothing is checked across fields: see ``validate_config``."""

    SPELLINGS: ClassVar[Mapping[str, str]] = {"generic-vhost-user": "generic_vhost_user"}

    cpus: CpusConfig = Field(default_factory=_default_cpus)
    memory: MemoryConfig = Field(default_factory=_default_memory)
    payload: PayloadConfig | None = None
    rate_limit_groups: Array[RateLimitGroupConfig] | None = None
    disks: Array[DiskConfig] | None = None
    net: Array[NetConfig] | None = None
    rng: RngConfig = Field(default_factory=_default_rng)
    balloon: BalloonConfig | None = None
    fs: Array[FsConfig] | None = None
    generic_vhost_user: Array[GenericVhostUserConfig] | None = None
    pmem: Array[PmemConfig] | None = None
    serial: SerialConfig = Field(default_factory=_default_serial)
    console: ConsoleConfig = Field(default_factory=_default_console)
    debug_console: DebugConsoleConfig = Field(default_factory=_default_debug_console)
    devices: Array[DeviceConfig] | None = None
    user_devices: Array[UserDeviceConfig] | None = None
    vdpa: Array[VdpaConfig] | None = None
    vsock: VsockConfig | None = None
    numa: Array[NumaConfig] | None = None
    iommu: Annotated[bool, Cli(hidden=True)] = False
    watchdog: Annotated[bool, Cli("--watchdog", caption="Reset a stuck guest")] = False
    rtc: RtcConfig | None = None
    pvpanic: Annotated[bool, Cli("--pvpanic", caption="Hear of a panic in the guest")] = False
    ivshmem: IvshmemConfig | None = None
    pci_segments: Array[PciSegmentConfig] | None = None
    platform: PlatformConfig | None = None
    tpm: TpmConfig | None = None
    landlock_enable: Annotated[bool, Cli("--landlock", caption="Confine this process")] = False
    landlock_rules: Array[LandlockConfig] | None = None

    @model_validator(mode="before")
    @classmethod
    def _join_spellings(cls, given: object) -> object:
        return join_spellings(cls, given, may_repeat=True)

    def to_json(self) -> dict[str, object]:
        """Give what ``vm.info`` shows; the dashed name of the document stands beside its twin."""
        shown = super().to_json()
        for spelling, name in self.SPELLINGS.items():
            if name in shown:
                shown[spelling] = shown[name]
        return shown

    def total_memory(self) -> int:
        """RAM at boot in bytes."""
        return self.memory.total_size


def validate_config(config: VmConfig) -> None:
    """Check every rule across fields. Raises: ConfigError (caller) with all problems."""
    from vmm.config.validation import validate  # Its rules know the models; not the reverse.

    validate(config)
