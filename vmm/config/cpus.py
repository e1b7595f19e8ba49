"""``CpusConfig``: how many virtual CPUs, what the guest sees of them, where they run."""

from enum import StrEnum
from typing import Annotated, ClassVar, Final

from pydantic import Field

from vmm.config.model import ConfigModel
from vmm.config.units import U8, U16, U32, U64, Array, Choice, PositiveU32
from vmm.config.values import Cli, Colons, Names

DEFAULT_VCPUS: Final = 1
DEFAULT_MAX_PHYS_BITS: Final = 46


class CoreSchedulingMode(StrEnum):
    """Which vCPUs may share a physical core with others."""

    VM = "Vm"
    VCPU = "Vcpu"
    OFF = "Off"


class CpuProfile(StrEnum):
    """The model of CPU that the guest sees."""

    HOST = "Host"


class CpuAffinity(ConfigModel):
    """The host CPUs that one vCPU may run on."""

    vcpu: U32
    host_cpus: Array[U64]


class CpuFeatures(ConfigModel):
    """CPU features that are off unless asked for."""

    amx: bool = False


class CpuTopology(ConfigModel):
    """How vCPUs are arranged; the product of the four is ``max_vcpus``."""

    threads_per_core: U16 = 1
    cores_per_die: U16 = 1
    dies_per_package: U16 = 1
    packages: U16 = 1


class CpusConfig(ConfigModel):
    """The virtual CPUs: how many, and what the guest sees of them."""

    FLAG: ClassVar[str] = "--cpus"

    boot_vcpus: Annotated[PositiveU32, Cli("boot", default=DEFAULT_VCPUS)]
    max_vcpus: Annotated[PositiveU32, Cli("max", same_as="boot_vcpus")]
    topology: Annotated[CpuTopology | None, Cli(values=Colons)] = None
    kvm_hyperv: bool = False
    max_phys_bits: U8 = DEFAULT_MAX_PHYS_BITS
    nested: bool = True
    affinity: Array[CpuAffinity] | None = None
    features: Annotated[CpuFeatures, Cli(values=Names)] = Field(
        default_factory=CpuFeatures.model_construct
    )
    core_scheduling: Choice[CoreSchedulingMode] = CoreSchedulingMode.VM
    profile: Choice[CpuProfile] = CpuProfile.HOST
