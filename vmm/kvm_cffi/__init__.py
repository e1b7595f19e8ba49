"""KVM from Python: one method an ioctl, and the vCPU loop that runs in C."""

from vmm.kvm_cffi.guest_memory import GuestMemoryMap
from vmm.kvm_cffi.iommu import Access, Fault, IommuDomain, IommuEndpoint, Mapping
from vmm.kvm_cffi.mechanisms import (
    AllOnes,
    ByteRing,
    ConfigAddress,
    Constant,
    Loop,
    Mechanism,
    PmTimer,
    Shadow,
)
from vmm.kvm_cffi.memory import address_of, bind_to_numa_node
from vmm.kvm_cffi.pages import PageSet, RangeTable, Transfer, WriteRecord
from vmm.kvm_cffi.router import ExitRouter
from vmm.kvm_cffi.structs import (
    ClockData,
    CpuidEntry,
    DescriptorTable,
    Fpu,
    MsiRoute,
    MsrEntry,
    Regs,
    Segment,
    Sregs,
)
from vmm.kvm_cffi.system import Kvm
from vmm.kvm_cffi.thread import Exit, ExitCounts, ExitKind, ThreadState, VcpuThread
from vmm.kvm_cffi.uart import Uart, UartState
from vmm.kvm_cffi.vcpu import SyncRegs, Vcpu
from vmm.kvm_cffi.virtqueue import Virtqueue, VirtqueueChain
from vmm.kvm_cffi.vm import Vm

__all__ = [
    "Access",
    "AllOnes",
    "ByteRing",
    "ClockData",
    "ConfigAddress",
    "Constant",
    "CpuidEntry",
    "DescriptorTable",
    "Exit",
    "ExitCounts",
    "ExitKind",
    "ExitRouter",
    "Fault",
    "Fpu",
    "GuestMemoryMap",
    "IommuDomain",
    "IommuEndpoint",
    "Kvm",
    "Loop",
    "Mapping",
    "Mechanism",
    "MsiRoute",
    "MsrEntry",
    "PageSet",
    "PmTimer",
    "RangeTable",
    "Regs",
    "Segment",
    "Shadow",
    "Sregs",
    "SyncRegs",
    "ThreadState",
    "Transfer",
    "Uart",
    "UartState",
    "Vcpu",
    "VcpuThread",
    "Virtqueue",
    "VirtqueueChain",
    "Vm",
    "WriteRecord",
    "address_of",
    "bind_to_numa_node",
]
