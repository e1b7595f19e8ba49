"""Tiny kernels: a few instructions with a PVH entry, assembled when a test runs.

A guest is entered at ENTRY in flat 32-bit protected mode with paging off, interrupts off, and no
stack. gcc's assembler turns its source (AT&T syntax) into bytes, and an ELF header goes around it.
"""

from __future__ import annotations

from pathlib import Path

from tests.kvm.guests.assembler import assemble
from tests.unit.boot_images import make_elf

ENTRY = 0x10_0000
RESULTS = 0x20_0000
"""A page where guests leave numbers for the test."""
STACK = 0x30_0000
TABLES = 0x31_0000
"""Room for page tables and interrupt descriptors."""


def write_kernel(folder: Path, source: str, name: str = "kernel") -> Path:
    """Write the kernel of a source into a folder."""
    path = folder / name
    path.write_bytes(make_elf(assemble(source, ENTRY), paddr=ENTRY))
    return path
