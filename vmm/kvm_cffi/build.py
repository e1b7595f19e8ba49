"""Build the extension ``vmm.kvm_cffi._kvm``.

The package's own build runs this through ``cffi_modules``; run as a script it builds in place.
"""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path("vmm/kvm_cffi/src")

PRELUDE = """
#include "kvm_cffi.h"
"""


def make_ffibuilder() -> FFI:
    """Describe the extension: what Python sees, and the C files behind it.

    The paths are relative to the project's root, where both kinds of build stand.
    """
    builder = FFI()
    for declared in ("ram_api.h", "translation_api.h", "content_api.h", "api.h", "kernel.cdef"):
        builder.cdef((ROOT / SOURCE / declared).read_text())
    builder.set_source(
        "vmm.kvm_cffi._kvm",
        PRELUDE,
        sources=[str(SOURCE / path.name) for path in sorted((ROOT / SOURCE).glob("*.c"))],
        depends=[str(SOURCE / path.name) for path in sorted((ROOT / SOURCE).glob("*.[ch]*"))],
        include_dirs=[str(SOURCE)],
        extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
        # One file name for both builds; else one would hide what the other has just built.
        py_limited_api=False,
    )
    return builder


ffibuilder = make_ffibuilder()

if __name__ == "__main__":
    ffibuilder.compile(tmpdir=str(ROOT), verbose=True)
