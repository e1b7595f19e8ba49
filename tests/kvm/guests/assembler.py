"""Guests' code from source, by gcc's assembler."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from pathlib import Path


@functools.cache
def assemble(source: str, address: int) -> bytes:
    """Assemble 32-bit code (AT&T syntax) that will lie at an address."""
    with tempfile.TemporaryDirectory() as folder:
        object_, image = Path(folder, "guest.o"), Path(folder, "guest.bin")
        text = f".code32\n.globl _start\n_start:\n{source}\n".encode()
        subprocess.run(["as", "--32", "-o", object_, "-"], input=text, check=True)
        link = ["ld", "-m", "elf_i386", f"-Ttext={address:#x}", "--oformat", "binary"]
        subprocess.run([*link, "-o", image, object_], check=True)
        return image.read_bytes()
