"""Put everything into guest memory that a machine needs to be entered, but its ACPI tables."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from vmm.boot import layout
from vmm.boot.entry import KernelEntry
from vmm.boot.layout import MIB, RamRange
from vmm.boot.loader import load_cmdline, load_initramfs, load_kernel
from vmm.boot.memmap import memory_map
from vmm.boot.mptable import encode_mptable
from vmm.boot.payload import PayloadFile
from vmm.boot.pvh import encode_memory_map, encode_module_list, encode_start_info
from vmm.boot.ram import BootRam
from vmm.boot.registers import GDT, IDT
from vmm.boot.smbios import SystemIdentity, encode_smbios
from vmm.boot.zero_page import encode_zero_page
from vmm.errors import ConfigError

TABLE_ALIGNMENT = 16
"""Kernels look for the MP table's pointer on these boundaries, in bytes."""


class Payload(NamedTuple):
    """What to boot: a kernel or a firmware image, opened; the latter takes no command line."""

    image: PayloadFile
    initramfs: PayloadFile | None = None
    cmdline: str = ""


class BootFacts(NamedTuple):
    """What the tables tell of the machine; ``apic_ids`` are those of the vCPUs at boot."""

    apic_ids: Sequence[int]
    identity: SystemIdentity = SystemIdentity()


def prepare(memory: BootRam, payload: Payload, facts: BootFacts) -> KernelEntry:
    """Write a machine's boot state into its RAM and say where the first vCPU enters.

    RAM is expected to begin at address 0. The ACPI tables are written by others, at layout.RSDP.

    Raises: ConfigError (caller) when a payload cannot be used or does not fit into RAM; HostError
    when one cannot be read.
    """
    low = memory.ram[0]
    if low.end <= layout.HIGH_RAM:
        raise ConfigError(
            f"Memory of {low.size} bytes (memory.size, --memory) ends below what a kernel needs, "
            f"and more than {layout.HIGH_RAM // MIB} MiB is the least; raise it"
        )
    kernel = load_kernel(memory, payload.image)
    initramfs = None
    if payload.initramfs is not None:
        initramfs = load_initramfs(memory, payload.initramfs, kernel)
    load_cmdline(memory, "" if payload.image.role == "firmware" else payload.cmdline)
    _write_parameters(memory, kernel, initramfs)
    memory.write(layout.BOOT_GDT, GDT)
    memory.write(layout.BOOT_IDT, IDT)
    memory.write(layout.EBDA_POINTER, struct.pack("<H", layout.EBDA >> 4))
    _write_tables(memory, facts)
    return kernel


def _write_parameters(memory: BootRam, kernel: KernelEntry, initramfs: RamRange | None) -> None:
    entries = memory_map(memory.ram)
    if kernel.kind == "bzimage":
        memory.write(layout.ZERO_PAGE, encode_zero_page(kernel, initramfs, entries))
        return
    memory.write(layout.START_INFO, encode_start_info(initramfs, len(entries)))
    if initramfs is not None:
        memory.write(layout.MODULE_LIST, encode_module_list(initramfs))
    memory.write(layout.PVH_MEMORY_MAP, encode_memory_map(entries))


def _write_tables(memory: BootRam, facts: BootFacts) -> None:
    smbios = encode_smbios(facts.identity)
    memory.write(layout.SMBIOS, smbios)
    after = layout.SMBIOS + len(smbios)
    address = -(-after // TABLE_ALIGNMENT) * TABLE_ALIGNMENT
    mptable = encode_mptable(facts.apic_ids, address)
    if mptable is not None:
        memory.write(address, mptable)
