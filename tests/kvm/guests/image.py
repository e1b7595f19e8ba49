"""Tiny kernels: a few instructions with a PVH entry, assembled when a test runs.

A guest is entered at ENTRY in flat 32-bit protected mode with paging off, interrupts off, and no
stack. gcc's assembler turns its source (AT&T syntax) into bytes, and an ELF header goes around it.
"""

from __future__ import annotations

import functools
import subprocess
import tempfile
from pathlib import Path

from tests.unit.boot_images import make_elf

ENTRY = 0x10_0000
RESULTS = 0x20_0000
"""A page where guests leave numbers for the test."""
STACK = 0x30_0000
TABLES = 0x31_0000
"""Room for page tables and interrupt descriptors."""


@functools.cache
def assemble(source: str) -> bytes:
    """Assemble 32-bit code that will lie at ENTRY."""
    with tempfile.TemporaryDirectory() as folder:
        object_, image = Path(folder, "guest.o"), Path(folder, "guest.bin")
        text = f".code32\n.globl _start\n_start:\n{source}\n".encode()
        subprocess.run(["as", "--32", "-o", object_, "-"], input=text, check=True)
        link = ["ld", "-m", "elf_i386", f"-Ttext={ENTRY:#x}", "--oformat", "binary"]
        subprocess.run([*link, "-o", image, object_], check=True)
        return image.read_bytes()


def write_kernel(folder: Path, source: str, name: str = "kernel") -> Path:
    """Write the kernel of a source into a folder."""
    path = folder / name
    path.write_bytes(make_elf(assemble(source), paddr=ENTRY))
    return path
