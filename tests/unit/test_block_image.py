"""Opening images: formats, what is no image, locks, topology, preallocation."""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from vmm.block.formats import TAIL_BYTES, Format, detect
from vmm.block.image import open_image
from vmm.block.locks import WHOLE_FILE, lock_image
from vmm.block.raw import RawImage, open_file
from vmm.errors import ConfigError, HostError, UnsupportedError

SIZE = 1 << 20
VHD_FOOTER = b"conectix" + bytes(52) + struct.pack(">I", 2) + bytes(448)
DYNAMIC_VHD_FOOTER = b"conectix" + bytes(52) + struct.pack(">I", 3) + bytes(448)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A sparse image of zeros."""
    path = tmp_path / "disk.raw"
    path.touch()
    os.truncate(path, SIZE)
    return path


@pytest.mark.parametrize(
    ("head", "tail", "found"),
    [
        (b"QFI\xfb" + bytes(508), bytes(512), Format.QCOW2),
        (b"QFI\xfb" + bytes(508), VHD_FOOTER, Format.QCOW2),
        (bytes(512), VHD_FOOTER, Format.FIXED_VHD),
        (bytes(512), DYNAMIC_VHD_FOOTER, Format.RAW),
        (bytes(100), VHD_FOOTER[:100], Format.RAW),
        (b"vhdxfile" + bytes(504), bytes(512), Format.VHDX),
        (b"# Disk DescriptorFile\nversion=1\n", b"", Format.FLAT_VMDK),
        (bytes(512), bytes(512), Format.RAW),
        (b"", b"", Format.RAW),
    ],
)
def test_format_is_told_by_content(head: bytes, tail: bytes, found: Format) -> None:
    assert len(VHD_FOOTER) == TAIL_BYTES
    assert detect(head, tail) is found


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("before", [0, 5000, 8192 - 512])
def test_footer_is_found_wherever_the_image_ends(tmp_path: Path, before: int, direct: bool) -> None:
    path = tmp_path / "disk.vhd"
    path.write_bytes(bytes(before) + VHD_FOOTER)

    with (
        pytest.raises(UnsupportedError, match=r"FixedVhd.*convert it to raw"),
        open_image(str(path), wanted=None, read_only=True, direct=direct),
    ):
        pass


def test_other_formats_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"QFI\xfb" + bytes(1020))

    with (
        pytest.raises(UnsupportedError, match="Qcow2"),
        open_image(str(path), wanted=Format.QCOW2, read_only=False, direct=False),
    ):
        pass


def test_image_said_to_be_raw_is_raw_whatever_its_guest_wrote(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"QFI\xfb" + bytes(1020))

    with open_image(str(path), wanted=Format.RAW, read_only=False, direct=False) as image:
        assert (image.format, image.guards_first_sector) == (Format.RAW, False)
        assert image.file.size == 1024


def test_image_of_another_format_than_said_is_refused(image: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"has format Raw.*says Qcow2") as caught,
        open_image(str(image), wanted=Format.QCOW2, read_only=False, direct=False),
    ):
        pass

    assert not isinstance(caught.value, UnsupportedError)


def test_detected_raw_image_is_guarded_and_said_so(
    image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING),
        open_image(str(image), wanted=None, read_only=False, direct=False) as opened,
    ):
        assert opened.guards_first_sector

    assert "image_type" in caplog.text


@pytest.mark.parametrize("size", [0, 1, 511])
def test_image_without_a_sector_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "small.raw"
    path.write_bytes(bytes(size))

    with (
        pytest.raises(ConfigError, match=f"has {size} bytes.*512"),
        open_image(str(path), wanted=None, read_only=False, direct=False),
    ):
        pass


def test_part_of_a_sector_is_not_seen_and_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "odd.raw"
    path.write_bytes(bytes(1300))

    with open_image(str(path), wanted=Format.RAW, read_only=False, direct=False):
        assert "last 276 bytes" in caplog.text


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.mkdir(), "directory"),
        (lambda path: os.mkfifo(path), "a named pipe"),
        (lambda path: path.symlink_to("/dev/null"), "a character device"),
    ],
)
@pytest.mark.parametrize("read_only", [False, True])
def test_what_is_no_image_is_refused(
    tmp_path: Path, make: Callable[[Path], None], words: str, read_only: bool
) -> None:
    path = tmp_path / "image"
    make(path)

    with pytest.raises((ConfigError, HostError), match=words):
        open_file(str(path), read_only=read_only, direct=False)


def test_socket_is_refused(tmp_path: Path) -> None:
    make_socket(tmp_path / "s")

    with pytest.raises(HostError, match="open of a disk image"):
        open_file(str(tmp_path / "s"), read_only=True, direct=False)


def test_missing_image_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"absent.raw failed: No such file.*create") as caught:
        open_file(str(tmp_path / "absent.raw"), read_only=False, direct=False)

    assert caught.value.errno == errno.ENOENT


def test_failed_opening_leaves_no_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "empty.raw"
    path.touch()
    before = os.listdir("/proc/self/fd")

    for wanted in (None, Format.RAW, Format.VHDX):
        with (
            pytest.raises(ConfigError),
            open_image(str(path), wanted=wanted, read_only=False, direct=False),
        ):
            pass

    assert os.listdir("/proc/self/fd") == before


def opened(path: Path, *, read_only: bool = False, direct: bool = False) -> RawImage:
    fd = open_file(str(path), read_only=read_only, direct=direct)
    return RawImage(fd, str(path), read_only=read_only, direct=direct)


@pytest.mark.parametrize(
    ("first", "second", "is_refused"),
    [(True, True, True), (True, False, True), (False, True, True), (False, False, False)],
    ids=["two writers", "reader after writer", "writer after reader", "two readers"],
)
@pytest.mark.parametrize("length", [WHOLE_FILE, SIZE])
def test_writers_exclude_others(
    image: Path, first: bool, second: bool, is_refused: bool, length: int
) -> None:
    one, two = opened(image, read_only=not first), opened(image, read_only=not second)
    try:
        lock_image(one.fd, one.path, exclusive=first, length=length)
        if is_refused:
            with pytest.raises(HostError, match="another instance likely holds a lock") as caught:
                lock_image(two.fd, two.path, exclusive=second, length=length)
            assert caught.value.errno == errno.EAGAIN
            one.close()
        lock_image(two.fd, two.path, exclusive=second, length=length)
    finally:
        one.close()
        two.close()


def test_lock_of_the_whole_file_covers_what_is_not_there_yet(image: Path) -> None:
    one, two = opened(image), opened(image)
    try:
        lock_image(one.fd, one.path, exclusive=True, length=WHOLE_FILE)
        os.truncate(image, 2 * SIZE)
        with pytest.raises(HostError, match="lock"):
            lock_image(two.fd, two.path, exclusive=True, length=2 * SIZE)
    finally:
        one.close()
        two.close()


def test_file_has_sectors_of_512_bytes_unless_direct_io_wants_more(image: Path) -> None:
    cached, direct = opened(image), opened(image, direct=True)
    try:
        assert tuple(cached.topology) == (512, 512, 512, 0)
        assert cached.alignment == 1
        assert direct.alignment == direct.topology.logical_block
        assert direct.alignment in (512, 4096)
    finally:
        cached.close()
        direct.close()


def test_serial_of_the_host_is_the_files_own(image: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.raw"
    other.write_bytes(bytes(SIZE))
    one, again, two = opened(image), opened(image, read_only=True), opened(other)
    try:
        assert one.host_serial == again.host_serial != two.host_serial
    finally:
        for each in (one, again, two):
            each.close()


def test_preallocation_takes_room_for_all_of_it(image: Path) -> None:
    file = opened(image)
    try:
        assert file.allocated < SIZE
        file.preallocate()
        assert file.allocated >= SIZE
    finally:
        file.close()


def test_preallocation_without_room_says_what_to_do() -> None:
    # A file system in memory refuses at once what is larger than itself.
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as huge:
        os.truncate(huge.name, 1 << 42)
        file = opened(Path(huge.name))
        try:
            with pytest.raises(HostError, match=r"No space left.*sparse"):
                file.preallocate()
        finally:
            file.close()


def test_read_only_image_has_no_holes_to_make_and_cannot_be_resized(image: Path) -> None:
    file = opened(image, read_only=True)
    try:
        assert not file.has_holes
        with pytest.raises(ConfigError, match="readonly"):
            file.resize(2 * SIZE)
    finally:
        file.close()
