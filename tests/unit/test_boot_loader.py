"""bzImages, the initramfs, the command line, and files that cannot be used."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest

from tests.unit.boot_images import FakeRam, as_file, make_bzimage, make_elf
from vmm.boot import layout
from vmm.boot.entry import KernelEntry
from vmm.boot.layout import GIB, MIB
from vmm.boot.loader import load_cmdline, load_initramfs, load_kernel
from vmm.boot.payload import PayloadFile, open_payload
from vmm.errors import ConfigError, HostError

KERNEL = KernelEntry("pvh", 2 * MIB, 8 * MIB)


def test_bzimage_is_loaded_at_1_mib_and_entered_there() -> None:
    memory = FakeRam()
    code = bytes(range(256)) * 3

    entry = load_kernel(memory, as_file(make_bzimage(code, setup_sectors=5)))

    assert (entry.kind, entry.address) == ("bzimage", MIB)
    assert memory.read(MIB, len(code) + 1) == code + b"\0"
    assert entry.end == MIB + len(code)
    assert entry.initramfs_limit == 2 * GIB


def test_bzimage_with_0_setup_sectors_has_4() -> None:
    memory = FakeRam()

    load_kernel(memory, as_file(make_bzimage(b"kernel" * 16, setup_sectors=0)))

    assert memory.read(MIB, 6) == b"kernel"


def test_bzimage_setup_header_is_handed_on_up_to_its_own_end() -> None:
    image = make_bzimage()

    entry = load_kernel(FakeRam(), as_file(image))

    assert entry.setup_header == image[0x1F1 : 0x202 + 0x66]


def test_bzimage_with_a_long_header_is_cut_where_the_zero_page_goes_on() -> None:
    image = bytearray(make_bzimage())
    image[0x201] = 0xFF

    entry = load_kernel(FakeRam(), as_file(bytes(image)))

    assert len(entry.setup_header) == 0x290 - 0x1F1


def test_bzimage_counts_the_room_it_unpacks_itself_into() -> None:
    image = make_bzimage(pref_address=16 * MIB, init_size=20 * MIB)

    assert load_kernel(FakeRam(), as_file(image)).end == 36 * MIB


def test_bzimage_with_too_little_memory_to_unpack_names_needed_and_available() -> None:
    image = make_bzimage(pref_address=16 * MIB, init_size=60 * MIB)

    with pytest.raises(ConfigError, match="unpacked kernel, 76 MiB, and the VM has 64 MiB"):
        load_kernel(FakeRam(), as_file(image))


@pytest.mark.parametrize(
    ("version", "loadflags", "shown"),
    [(0x205, 1, r"2\.05 with load flags 0x01"), (0x20F, 0x80, r"2\.15 with load flags 0x80")],
)
def test_bzimage_too_old_or_loaded_low_is_refused(version: int, loadflags: int, shown: str) -> None:
    image = make_bzimage(version=version, loadflags=loadflags)

    with pytest.raises(ConfigError, match=shown):
        load_kernel(FakeRam(), as_file(image))


def test_bzimage_that_was_cut_is_refused() -> None:
    image = make_bzimage(bytes(4096))

    with pytest.raises(ConfigError, match="ends at byte 5600, and its header says"):
        load_kernel(FakeRam(), as_file(image[:-32]))


def test_bzimage_that_ends_within_its_header_is_refused() -> None:
    with pytest.raises(ConfigError, match="ends after 528 bytes"):
        load_kernel(FakeRam(), as_file(make_bzimage()[:0x210]))


def test_bzimage_that_wants_to_lie_over_the_tables_is_refused() -> None:
    with pytest.raises(ConfigError, match="wants its code at 0x10000"):
        load_kernel(FakeRam(), as_file(make_bzimage(code32_start=0x10000)))


@pytest.mark.parametrize(
    ("data", "shown"),
    [(b"", "is empty"), (b"\x1f\x8b\x08\0", "begins with 1f8b0800"), (b"#!", "begins with 2321")],
)
def test_file_that_is_no_kernel_says_what_it_begins_with(data: bytes, shown: str) -> None:
    with pytest.raises(ConfigError, match=f"^Kernel /kernel {shown}"):
        load_kernel(FakeRam(), as_file(data))


def test_firmware_that_is_no_firmware_is_called_so() -> None:
    with pytest.raises(ConfigError, match=r"^Firmware /firmware begins with"):
        load_kernel(FakeRam(), as_file(b"MZ..", "firmware"))


def test_kernel_that_cannot_be_read_is_the_hosts_fault() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(errno.EIO, "bad disk")

    with pytest.raises(HostError, match=r"read on /k failed.*EIO.*--kernel") as caught:
        load_kernel(FakeRam(), PayloadFile(Broken(), "/k"))
    assert caught.value.errno == errno.EIO


def test_kernel_that_cannot_be_loaded_is_the_hosts_fault() -> None:
    class BrokenLater(io.BytesIO):
        def readinto(self, buffer: object, /) -> int:
            raise OSError(errno.EIO, "bad disk")

    with pytest.raises(HostError, match="read on /k failed"):
        load_kernel(FakeRam(), PayloadFile(BrokenLater(make_elf()), "/k"))


def test_initramfs_goes_to_the_pages_at_the_top_of_the_first_ram() -> None:
    memory = FakeRam((0, 64 * MIB), (4 * GIB, 64 * MIB))

    placed = load_initramfs(memory, as_file(b"cpio" * 1500, "initramfs"), KERNEL)

    assert placed == (64 * MIB - 8192, 6000)
    assert memory.read(*placed) == b"cpio" * 1500


def test_initramfs_stays_where_a_bzimage_can_see_it() -> None:
    kernel = KERNEL._replace(initramfs_limit=32 * MIB)

    placed = load_initramfs(FakeRam(), as_file(b"c" * 4096, "initramfs"), kernel)

    assert placed == (32 * MIB - 4096, 4096)


def test_initramfs_that_just_fits_above_the_kernel_is_loaded() -> None:
    memory = FakeRam((0, 8 * MIB + 4096))

    assert load_initramfs(memory, as_file(b"c", "initramfs"), KERNEL).gpa == KERNEL.end


def test_initramfs_that_would_lie_over_the_kernel_names_needed_and_available() -> None:
    memory = FakeRam((0, 9 * MIB))
    file = as_file(bytes(MIB + 1), "initramfs")

    with pytest.raises(ConfigError, match=r"needs RAM up to 10 MiB.*ends at 9 MiB"):
        load_initramfs(memory, file, KERNEL)


def test_initramfs_bigger_than_ram_is_refused() -> None:
    class Huge(io.BytesIO):
        def seek(self, offset: int, whence: int = 0, /) -> int:
            return 1 << 40

    with pytest.raises(ConfigError, match="1099511627776 bytes"):
        load_initramfs(FakeRam(), PayloadFile(Huge(), "/i", "initramfs"), KERNEL)


def test_initramfs_that_is_empty_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^Initramfs /initramfs is empty"):
        load_initramfs(FakeRam(), as_file(b"", "initramfs"), KERNEL)


def test_cmdline_is_written_with_its_nul() -> None:
    memory = FakeRam()
    memory.write(layout.CMDLINE, b"\xff" * 16)

    load_cmdline(memory, "quiet é")

    assert memory.read(layout.CMDLINE, 10) == "quiet é\0".encode() + b"\xff"


def test_cmdline_with_bytes_that_are_no_text_is_written_as_given() -> None:
    memory = FakeRam()

    load_cmdline(memory, os.fsdecode(b"a=\xff"))

    assert memory.read(layout.CMDLINE, 4) == b"a=\xff\0"


def test_cmdline_of_the_greatest_length_is_accepted() -> None:
    memory = FakeRam()

    load_cmdline(memory, "x" * 0xFFFF)

    assert memory.read(layout.CMDLINE + 0xFFFE, 2) == b"x\0"


@pytest.mark.parametrize(
    ("cmdline", "shown"),
    [
        ("x" * 0x10000, "has 65536 bytes and 65535 is the limit"),
        ("a\0b", "NUL at byte 1"),
        ("a\ud800", "lone surrogate at character 1"),
    ],
)
def test_cmdline_that_cannot_be_passed_says_why(cmdline: str, shown: str) -> None:
    with pytest.raises(ConfigError, match=shown):
        load_cmdline(FakeRam(), cmdline)


def test_open_payload_of_a_missing_file_names_it_and_the_flag() -> None:
    with (
        pytest.raises(HostError, match=r"/no/such/file.*ENOENT.*--firmware \(payload\.firmware\)"),
        open_payload("/no/such/file", "firmware"),
    ):
        pass


def test_open_payload_of_a_folder_is_the_hosts_refusal(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="EISDIR"), open_payload(str(tmp_path)):
        pass


def test_open_payload_of_a_pipe_does_not_wait(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    with pytest.raises(ConfigError, match="is not a regular file"), open_payload(str(pipe)):
        pass


def test_open_payload_closes_the_file_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(make_elf())

    with open_payload(str(path)) as payload:
        assert payload.size() == len(make_elf())

    assert payload.file.closed


def test_open_payload_with_a_nul_in_the_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="NUL"), open_payload("/boot/\0vmlinuz"):
        pass
