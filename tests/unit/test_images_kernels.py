"""Cutting the ELF kernel out of a bzImage, and the load order of modules."""

from __future__ import annotations

import lzma
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tools.images.cache import ImageError
from tools.images.kernels import cut_vmlinux, kernel
from tools.images.modules import Module, load_order

ELF = b"\x7fELF" + bytes(range(256)) * 64


def bzimage(payload: bytes, setup_sectors: int = 3) -> bytes:
    """Build the parts of a bzImage that lead to its payload."""
    offset = 64
    setup = bytearray((setup_sectors + 1) * 512)
    setup[0x1F1] = setup_sectors
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", setup, 0x248, offset, len(payload))
    return bytes(setup) + bytes(offset) + payload + b"code that follows"


def compress(tool: str, data: bytes) -> bytes:
    # -l is the kernel's own lz4 form; the size the build appends follows the frame.
    command = {"lz4": ["lz4", "-lc"], "zstd": ["zstd", "-c"]}[tool]
    done = subprocess.run(command, input=data, capture_output=True, check=True)
    return done.stdout + struct.pack("<I", len(data))


@pytest.mark.parametrize("tool", ["lz4", "zstd"])
def test_cut_vmlinux_gives_the_elf_kernel(tmp_path: Path, tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed; 'make setup' installs it")
    vmlinuz = tmp_path / "vmlinuz"
    vmlinuz.write_bytes(bzimage(compress(tool, ELF)))

    cut_vmlinux(vmlinuz, tmp_path / "vmlinux")

    assert (tmp_path / "vmlinux").read_bytes() == ELF


@pytest.mark.parametrize("trailer", [b"", b"\x00\x10\x20\x00"])
def test_cut_vmlinux_of_xz_gives_the_elf_kernel(tmp_path: Path, trailer: bytes) -> None:
    vmlinuz = tmp_path / "vmlinuz"
    vmlinuz.write_bytes(bzimage(lzma.compress(ELF) + trailer))

    cut_vmlinux(vmlinuz, tmp_path / "vmlinux")

    assert (tmp_path / "vmlinux").read_bytes() == ELF


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (bytes(1024), "it has no setup header"),
        (b"", "it has no setup header"),
        (bzimage(b"\x1f\x8b\x08\x00"), r"compressed in an unknown way \(1f8b0800\)"),
        (bzimage(lzma.compress(b"no kernel")), "holds no ELF kernel"),
        (bzimage(b"\xfd7zX\x00" + bytes(64)), "is damaged"),
    ],
)
def test_cut_vmlinux_of_something_else_says_what_is_wrong(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    vmlinuz = tmp_path / "vmlinuz"
    vmlinuz.write_bytes(content)

    with pytest.raises(ImageError, match=problem):
        cut_vmlinux(vmlinuz, tmp_path / "vmlinux")

    assert not (tmp_path / "vmlinux").exists()


def test_kernel_of_unknown_release_names_the_known() -> None:
    with pytest.raises(ImageError, match=r"no kernel '5\.10'; known are 6\.1-cloud, 6\.12-cloud"):
        kernel("5.10")


@pytest.fixture
def modules_dir(tmp_path: Path) -> Path:
    """A kernel's modules: net needs failover and virtio, failover needs core; rng is built in."""
    (tmp_path / "modules.dep").write_text(
        "kernel/net.ko.xz: kernel/failover.ko kernel/core-lib.ko kernel/virtio.ko\n"
        "kernel/failover.ko: kernel/core-lib.ko\n"
        "kernel/core-lib.ko:\n"
        "kernel/virtio.ko:\n"
        "kernel/blk.ko: kernel/virtio.ko\n"
    )
    (tmp_path / "modules.builtin").write_text("kernel/drivers/virtio-rng.ko\n")
    return tmp_path


def test_load_order_puts_what_is_needed_first_and_once(modules_dir: Path) -> None:
    order = [module.name for module in load_order(modules_dir, ("net", "blk"))]

    assert order == ["virtio", "core_lib", "failover", "net", "blk"]


def test_load_order_of_built_in_module_is_empty(modules_dir: Path) -> None:
    assert load_order(modules_dir, ("virtio_rng",)) == []


def test_load_order_of_unknown_module_names_it(modules_dir: Path) -> None:
    with pytest.raises(ImageError, match="has no module floppy"):
        load_order(modules_dir, ("floppy",))


def test_module_read_decompresses(tmp_path: Path) -> None:
    path = tmp_path / "net.ko.xz"
    path.write_bytes(lzma.compress(ELF))

    assert Module("net", path).read() == ELF


def test_module_read_of_unknown_compression_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"net\.ko\.zst is compressed in an unknown way"):
        Module("net", tmp_path / "net.ko.zst").read()
