"""The vCPUs of a new machine: told what they are, and set to the kernel's entry."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vmm.boot import registers
from vmm.boot.cpuid import CpuModel, common_cpuid, guest_phys_bits, vcpu_cpuid
from vmm.boot.msrs import BOOT_MSRS
from vmm.boot.topology import Topology, x2apic_ids
from vmm.errors import ConfigError
from vmm.kvm_cffi import constants, host
from vmm.kvm_cffi.structs import CpuidEntry, Fpu

if TYPE_CHECKING:
    from vmm.boot.entry import KernelEntry
    from vmm.config.cpus import CpusConfig
    from vmm.kvm_cffi import Kvm, Vcpu
    from vmm.machine.saved import SavedVcpu

X2APIC_ABOVE = 254
"""An APIC id beyond this does not fit the 8 bits that xAPIC mode has for it."""


class Processors(NamedTuple):
    """What all vCPUs of a machine have in common, worked out before any is created."""

    model: CpuModel
    common: tuple[CpuidEntry, ...]
    apic_ids: tuple[int, ...]

    @property
    def phys_bits(self) -> int:
        """The width in bits of the guest's physical addresses."""
        return self.model.phys_bits

    @property
    def x2apic(self) -> bool:
        """Whether the vCPUs must start in x2APIC mode."""
        return max(self.apic_ids) > X2APIC_ABOVE


def describe(kvm: Kvm, cpus: CpusConfig) -> Processors:
    """Work out what the guest's processors are.

    Raises: ConfigError (caller) for more vCPUs than KVM has, or a feature the host lacks.
    """
    most = kvm.check_extension(constants.KVM_CAP_MAX_VCPUS)
    if cpus.max_vcpus > most:
        raise ConfigError(
            f"cpus.max_vcpus is {cpus.max_vcpus} (--cpus max=…) and this host's KVM can run {most} "
            f"vCPUs in one VM; use at most {most}"
        )
    if cpus.features.amx:
        host.request_amx_for_guests()
    if cpus.kvm_hyperv and not kvm.check_extension(constants.KVM_CAP_HYPERV_SYNIC):
        raise ConfigError(
            "cpus.kvm_hyperv (--cpus kvm_hyperv=on) asks for Hyper-V's interface and this host's "
            "KVM does not have it; leave it out or use a kernel built with CONFIG_KVM_HYPERV"
        )
    supported = kvm.get_supported_cpuid()
    topology = None
    if cpus.topology is not None:
        shape = cpus.topology
        topology = Topology(
            shape.threads_per_core, shape.cores_per_die, shape.dies_per_package, shape.packages
        )
    model = CpuModel(
        boot_vcpus=cpus.boot_vcpus,
        max_vcpus=cpus.max_vcpus,
        phys_bits=guest_phys_bits(supported, cpus.max_phys_bits),
        topology=topology,
        nested=cpus.nested,
        kvm_hyperv=cpus.kvm_hyperv,
        amx=cpus.features.amx,
    )
    common = common_cpuid(supported, model, host.cpuid)
    return Processors(model, tuple(common), x2apic_ids(cpus.max_vcpus, topology))


def bring_back(
    vcpu: Vcpu, index: int, processors: Processors, state: SavedVcpu, elapsed_ns: int
) -> None:
    """Make a new vCPU what another was ``elapsed_ns`` ago.

    Raises: ConfigError when its state is none of a vCPU here (caller), HostError.
    """
    from vmm.machine.vcpu_state import load_vcpu  # Only now: most VMs are booted.

    if processors.model.kvm_hyperv:
        vcpu.enable_cap(constants.KVM_CAP_HYPERV_SYNIC)
    try:
        load_vcpu(vcpu, state, elapsed_ns)
    except OverflowError as error:
        raise ConfigError(f"The saved vCPU {index} has an impossible value: {error}") from None


def set_up(vcpu: Vcpu, index: int, processors: Processors, entry: KernelEntry | None) -> None:
    """Set a new vCPU to the kernel's entry, if there is one.

    All get the same registers; KVM lets all but the first wait for INIT and SIPI.
    Raises: HostError.
    """
    model = processors.model
    vcpu.set_cpuid2(vcpu_cpuid(processors.common, model, index, vcpu.get_tsc_khz()))
    if model.kvm_hyperv:
        vcpu.enable_cap(constants.KVM_CAP_HYPERV_SYNIC)
    vcpu.set_sregs(registers.initial_sregs(vcpu.get_sregs(), x2apic=processors.x2apic))
    if entry is not None:
        vcpu.set_regs(registers.initial_regs(entry))
    vcpu.set_fpu(Fpu(fcw=registers.FPU_CONTROL_WORD, mxcsr=registers.MXCSR))
    vcpu.set_msrs(BOOT_MSRS)
    vcpu.set_lapic(registers.configure_lapic(vcpu.get_lapic()))
