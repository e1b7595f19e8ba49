"""The archive writer, and what the guest's init is told and answers."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.images.cache import ImageError
from tools.images.cpio import Archive
from tools.images.initramfs import RunResult, guest_words, initramfs, run_result, with_script
from tools.images.kernels import Kernel

INIT = Path(__file__).resolve().parents[2] / "tools" / "images" / "guest_init.sh"


def entries(data: bytes) -> list[tuple[str, int, bytes]]:
    """Read a newc archive (or several that follow each other): name, mode, data."""
    found = []
    at = 0
    while at + 110 <= len(data):
        if data[at : at + 6] != b"070701":
            at += 4  # padding between archives
            continue
        numbers = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = numbers[1], numbers[6], numbers[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        start = (at + 110 + name_size + 3) & ~3
        found.append((name, mode, data[start : start + size]))
        at = (start + size + 3) & ~3
    return found


def test_archive_has_its_parents_and_its_trailer() -> None:
    archive = Archive()
    archive.file("/etc/acpi/run", b"text", 0o755)
    archive.symlink("bin/sh", "busybox")

    assert entries(archive.encode()) == [
        ("etc", 0o40755, b""),
        ("etc/acpi", 0o40755, b""),
        ("etc/acpi/run", 0o100755, b"text"),
        ("bin", 0o40755, b""),
        ("bin/sh", 0o120777, b"busybox"),
        ("TRAILER!!!", 0, b""),
    ]


def test_archive_of_equal_content_has_equal_bytes_in_whole_blocks() -> None:
    first, second = Archive(), Archive()
    for archive in (first, second):
        archive.file("file", b"12345")

    assert first.encode() == second.encode()
    assert len(first.encode()) % 512 == 0


def test_archive_device_node_has_its_numbers() -> None:
    archive = Archive()
    archive.character_device("console", 5, 1)

    data = archive.encode()

    assert data[:6] == b"070701"
    assert int(data[14:22], 16) == 0o20600
    assert (int(data[6 + 8 * 9 : 6 + 8 * 10], 16), int(data[6 + 8 * 10 : 6 + 8 * 11], 16)) == (5, 1)


@pytest.mark.skipif(
    shutil.which("busybox") is None, reason="busybox is missing: nothing to read with"
)
def test_archive_is_read_by_another_program() -> None:
    archive = Archive()
    archive.file("deep/file", b"x" * 1001)
    archive.file("other", b"")

    done = subprocess.run(
        ["busybox", "cpio", "-t"], input=archive.encode(), capture_output=True, check=True
    )

    assert done.stdout.split() == [b"deep", b"deep/file", b"other"]


def test_with_script_follows_the_image(tmp_path: Path) -> None:
    base = Archive()
    base.file("init", b"init")
    (tmp_path / "base").write_bytes(base.encode())

    target = with_script(tmp_path / "base", "echo long", tmp_path / "both")

    names = {name: data for name, _, data in entries(target.read_bytes())}
    assert names["init"] == b"init"
    assert names["script"] == b"echo long"


def test_guest_words_hold_a_script_with_any_character() -> None:
    script = 'echo "a b" = $(cat /proc/cmdline) \'; é\n'

    words = guest_words(script, "wait").split(" ")

    assert [word.partition("=")[0] for word in words] == ["run", "then"]
    assert base64.b64decode(words[0].removeprefix("run=")).decode() == script
    assert words[1] == "then=wait"


def test_guest_words_without_anything_are_empty() -> None:
    assert guest_words() == ""


@pytest.mark.parametrize(
    ("console", "result"),
    [
        ("boot\r\nGUEST-RUN-BEGIN\r\na\r\nb\r\nGUEST-RUN-END 3\r\n", RunResult("a\nb\n", 3)),
        ("GUEST-RUN-BEGIN\nGUEST-RUN-END 0\nGUEST-POWEROFF\n", RunResult("", 0)),
        ("GUEST-RUN-BEGIN\nhalf", None),
        ("typed GUEST-RUN-END 0\n", None),
        ("", None),
    ],
)
def test_run_result_is_what_the_guest_printed(console: str, result: RunResult | None) -> None:
    assert run_result(console) == result


def test_initramfs_of_unknown_variant_names_the_known(tmp_path: Path) -> None:
    kernel = Kernel("6.12", tmp_path, tmp_path, tmp_path)

    with pytest.raises(ImageError, match=r"no initramfs 'huge'; known are minimal, virtio, demo"):
        initramfs(kernel, "huge")


def test_guest_init_is_a_valid_script() -> None:
    done = subprocess.run(["sh", "-n", INIT], capture_output=True, check=False)

    assert done.stderr == b""
    assert done.returncode == 0
