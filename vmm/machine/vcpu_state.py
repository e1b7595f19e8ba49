"""All of a vCPU that another can go on from: read out of one, and put into a new one.

The vCPU stands still meanwhile. The order of writing matters: the APIC base before the local APIC,
that before the deadline of its timer; the registers that turn virtualisation on and say what it can
do before what is nested in it; and what is pending last, as setting registers forgets it.
Spec: Linux Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vmm.boot.cpuid import AMD_ECX_SVM, LEAF_1_ECX_VMX
from vmm.boot.cpuid_table import CpuidTable
from vmm.boot.msrs import TSC
from vmm.errors import ConfigError, HostError
from vmm.kvm_cffi.registers import CONTROLS, REGS, SEGMENTS, TABLES
from vmm.kvm_cffi.structs import CpuidEntry, DescriptorTable, MsrEntry, Regs, Segment, Sregs
from vmm.kvm_cffi.vcpu import NESTED_HEADER_BYTES
from vmm.machine.saved import SavedSegment, SavedSregs, SavedTable, SavedVcpu

if TYPE_CHECKING:
    from vmm.kvm_cffi import Vcpu

NS_PER_MS = 1_000_000


def save_vcpu(vcpu: Vcpu, msrs: Sequence[int]) -> SavedVcpu:
    """Read a vCPU; ``msrs`` are those that make up its state. Raises: HostError."""
    # Looking at the run state has KVM settle what is on its way to it, so it comes first.
    mp_state = vcpu.get_mp_state()
    regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    return SavedVcpu(
        regs={name: getattr(regs, name) for name in REGS},
        sregs=_from_sregs(sregs),
        xsave=vcpu.get_xsave(),
        xcrs=vcpu.get_xcrs(),
        msrs=tuple((msr.index, msr.data) for msr in _readable(vcpu, msrs)),
        lapic=vcpu.get_lapic(),
        events=vcpu.get_vcpu_events(),
        debugregs=vcpu.get_debugregs(),
        mp_state=mp_state,
        tsc_khz=vcpu.get_tsc_khz(),
        cpuid=(cpuid := tuple(vcpu.get_cpuid2())),
        nested=vcpu.get_nested_state() if vcpu.nested_bytes and _may_run_vms(cpuid) else b"",
    )


def load_vcpu(vcpu: Vcpu, state: SavedVcpu, elapsed_ns: int) -> None:
    """Make a new vCPU what another was ``elapsed_ns`` ago, by its counter.

    Raises: ConfigError when the state is none of a vCPU on this host (caller), HostError.
    """
    vcpu.set_cpuid2(state.cpuid)
    if state.tsc_khz != vcpu.get_tsc_khz():
        _set_frequency(vcpu, state.tsc_khz)
    try:
        vcpu.set_mp_state(state.mp_state)
        vcpu.set_sregs(_to_sregs(state.sregs))
        vcpu.set_regs(Regs(**{name: state.regs[name] for name in REGS}))
    except (KeyError, TypeError) as error:
        raise ConfigError(f"The saved vCPU {vcpu.index} lacks registers: {error}") from None
    vcpu.set_xcrs(state.xcrs)
    for what, area, now in (
        ("XSAVE area", state.xsave, vcpu.get_xsave()),
        ("local APIC", state.lapic, vcpu.get_lapic()),
        ("pending events", state.events, vcpu.get_vcpu_events()),
        ("debug registers", state.debugregs, vcpu.get_debugregs()),
    ):
        if len(area) != len(now):
            raise ConfigError(
                f"The saved {what} of vCPU {vcpu.index} has {len(area)} bytes and this host's KVM "
                f"takes {len(now)}; restore it on a host like the one it was saved on"
            )
    vcpu.set_xsave(state.xsave)
    vcpu.set_debugregs(state.debugregs)
    vcpu.set_lapic(state.lapic)
    _set_msrs(vcpu, _advanced(state, elapsed_ns))
    if state.nested:
        _set_nested_state(vcpu, state.nested)
    vcpu.set_vcpu_events(state.events)
    vcpu.tell_paused()


def _may_run_vms(cpuid: Iterable[CpuidEntry]) -> bool:
    table = CpuidTable(cpuid)
    return bool(table.get(0x1).ecx & LEAF_1_ECX_VMX or table.get(0x8000_0001).ecx & AMD_ECX_SVM)


def _set_nested_state(vcpu: Vcpu, nested: bytes) -> None:
    if not vcpu.nested_bytes:
        raise ConfigError(
            f"The saved vCPU {vcpu.index} runs VMs of its own and this host's KVM does not allow "
            "that; restore it on one with nested virtualisation"
        )
    if not NESTED_HEADER_BYTES <= len(nested) <= vcpu.nested_bytes:
        raise ConfigError(
            f"What the saved vCPU {vcpu.index} does as a host has {len(nested)} bytes, and KVM "
            f"takes {NESTED_HEADER_BYTES} to {vcpu.nested_bytes}; the state is not whole"
        )
    vcpu.set_nested_state(nested)


def _set_frequency(vcpu: Vcpu, khz: int) -> None:
    try:
        vcpu.set_tsc_khz(khz)
    except HostError as error:
        raise HostError(
            error.operation,
            error.errno,
            hint=f"the guest's time-stamp counter runs at {khz} kHz and this host's cannot; "
            "restore it on a host with the same frequency, or one that can scale it",
        ) from error


def _advanced(state: SavedVcpu, elapsed_ns: int) -> list[MsrEntry]:
    """The MSRs with the time-stamp counter where it would be by now, and that first.

    A timer's deadline is compared with the counter as soon as it is set.
    """
    passed = max(0, elapsed_ns) * state.tsc_khz // NS_PER_MS
    entries = [
        MsrEntry(index, (data + passed) % (1 << 64) if index == TSC else data)
        for index, data in state.msrs
    ]
    return sorted(entries, key=lambda entry: entry.index != TSC)


def _readable(vcpu: Vcpu, indices: Sequence[int]) -> list[MsrEntry]:
    """Those of some MSRs that this vCPU has: KVM lists what others may have, too."""
    try:
        return vcpu.get_msrs(indices)
    except HostError:
        if len(indices) == 1:
            return []
    half = len(indices) // 2
    return _readable(vcpu, indices[:half]) + _readable(vcpu, indices[half:])


def _set_msrs(vcpu: Vcpu, entries: Sequence[MsrEntry]) -> None:
    """Write MSRs in order, but for those that cannot be written and have their value already."""
    try:
        vcpu.set_msrs(entries)
        return
    except HostError:
        if len(entries) == 1:
            if _readable(vcpu, [entries[0].index]) == list(entries):
                return
            raise
    half = len(entries) // 2
    _set_msrs(vcpu, entries[:half])
    _set_msrs(vcpu, entries[half:])


def _from_sregs(sregs: Sregs) -> SavedSregs:
    return SavedSregs(
        segments={name: SavedSegment(**getattr(sregs, name)._asdict()) for name in SEGMENTS},
        tables={name: SavedTable(**getattr(sregs, name)._asdict()) for name in TABLES},
        controls={name: getattr(sregs, name) for name in CONTROLS},
        interrupt_bitmap=sregs.interrupt_bitmap,
    )


def _to_sregs(state: SavedSregs) -> Sregs:
    """KVM's form of the registers. Raises: KeyError, TypeError when one is missing or unknown."""
    first, second, third, fourth = (*state.interrupt_bitmap, 0, 0, 0, 0)[:4]
    sregs = Sregs(interrupt_bitmap=(first, second, third, fourth))
    for name in SEGMENTS:
        setattr(sregs, name, Segment(**state.segments[name].model_dump()))
    for name in TABLES:
        setattr(sregs, name, DescriptorTable(**state.tables[name].model_dump()))
    for name in CONTROLS:
        setattr(sregs, name, state.controls[name])
    return sregs
