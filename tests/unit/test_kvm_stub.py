"""The typed stub names exactly what the built extension has."""

from __future__ import annotations

import ast
import errno
import subprocess
import sys
from pathlib import Path

import pytest

import vmm.kvm_cffi
from vmm.errors import HostError
from vmm.kvm_cffi._kvm import lib
from vmm.kvm_cffi.check import check

PACKAGE = Path(vmm.kvm_cffi.__file__).parent


def test_stub_declares_what_the_extension_has() -> None:
    stub = ast.parse((PACKAGE / "_kvm.pyi").read_text())
    (declared,) = (n for n in stub.body if isinstance(n, ast.ClassDef) and n.name == "Lib")
    names = {n.name for n in declared.body if isinstance(n, ast.FunctionDef)}
    names |= {
        n.target.id
        for n in declared.body
        if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    }

    assert names == set(dir(lib))


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EBUSY, "in use"),
        (errno.EACCES, "group kvm"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENOTTY, "newer"),
        (errno.EINVAL, "does not accept"),
    ],
)
def test_failed_ioctl_says_its_name_its_errno_and_what_to_do(number: int, hint: str) -> None:
    with pytest.raises(HostError, match=hint) as caught:
        check("KVM_CREATE_VM", -number)

    assert caught.value.errno == number
    assert caught.value.operation == "KVM_CREATE_VM"


@pytest.mark.parametrize(
    ("number", "hint"),
    [(errno.ENOENT, "kvm_intel"), (errno.EACCES, "group kvm"), (errno.EBUSY, "another hypervisor")],
)
def test_failed_open_says_the_path_and_what_to_do(number: int, hint: str) -> None:
    with pytest.raises(HostError, match=f"open on /dev/kvm .*{hint}"):
        check("open", -number, path="/dev/kvm")


def test_import_needs_neither_trio_nor_the_build_tools() -> None:
    code = "import sys, vmm.kvm_cffi; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()

    assert not {"trio", "cffi", "setuptools", "logging", "asyncio"} & set(loaded)
