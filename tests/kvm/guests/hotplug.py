"""Guests that serve the registers of PCI hot plug themselves, without ACPI."""

from __future__ import annotations

from tests.kvm.guests import programs
from vmm.acpi.pci_hotplug import Register
from vmm.boot import layout
from vmm.machine.chipset import PCI_HOTPLUG_PAGE
from vmm.page import PAGE

PHYS_BITS = 36
"""So many bits bring the registers where paging with 32-bit entries reaches them."""

CPUS = {"boot_vcpus": 1, "max_vcpus": 1, "max_phys_bits": PHYS_BITS}

REGISTERS = (1 << PHYS_BITS) - layout.UNUSED_TOP - (PCI_HOTPLUG_PAGE + 1) * PAGE

SEEN = programs.WINDOW + REGISTERS % (2 << 20)
"""Where ``find`` shows the registers."""


def find(segment: int = 0) -> str:
    """Map the registers and select a segment."""
    return f"""
        {programs.map_window(REGISTERS)}
        movl ${segment}, {SEEN + Register.PSEG:#x}
    """


def eject_for_ever(segment: int = 0) -> str:
    """Give back what is asked for, as soon as it is."""
    return f"""
        {find(segment)}
    7:  mov {SEEN + Register.PCID:#x}, %eax
        test %eax, %eax
        jz 7b
        mov %eax, {SEEN + Register.B0EJ:#x}
        jmp 7b
    """


def eject(slots: int) -> str:
    """Eject slots, asked or not; ``slots`` is a bitmap."""
    return f"movl ${slots:#x}, {SEEN + Register.B0EJ:#x};"


def tell_inserted() -> str:
    """Say which slots have something new, as soon as one does."""
    return f"""
    7:  mov {SEEN + Register.PCIU:#x}, %eax
        test %eax, %eax
        jz 7b
        {programs.tell()}
    """
