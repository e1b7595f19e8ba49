"""The modes Null and File, and the choice of a mode."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import trio

from vmm.console import open_backend
from vmm.console.output import serve_output
from vmm.errors import ConfigError, HostError


async def test_file_existing_content_is_replaced_by_output(tmp_path: Path) -> None:
    path = tmp_path / "serial.log"
    path.write_bytes(b"of an earlier run, and longer")

    async with open_backend("File", name="serial", file=str(path)) as backend:
        await backend.write(b"one ")
        await backend.write(b"two")

    assert path.read_bytes() == b"one two"


async def test_file_without_directory_raises_host_error_with_path(tmp_path: Path) -> None:
    path = str(tmp_path / "missing" / "serial.log")

    with pytest.raises(HostError, match="give the serial a file") as caught:
        async with open_backend("File", name="serial", file=path):
            pass

    assert (caught.value.errno, caught.value.path) == (errno.ENOENT, path)


async def test_file_fifo_nobody_reads_raises_instead_of_hanging(tmp_path: Path) -> None:
    path = str(tmp_path / "fifo")
    os.mkfifo(path)

    with pytest.raises(HostError) as caught:
        async with open_backend("File", name="serial", file=path):
            pass

    assert caught.value.errno == errno.ENXIO


async def test_file_fifo_with_slow_reader_makes_the_writer_wait(tmp_path: Path) -> None:
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    output = b"0123456789abcdef" * (1 << 14)
    received = bytearray()

    async def read_all() -> None:
        while len(received) < len(output):
            await trio.lowlevel.wait_readable(reader)
            received.extend(os.read(reader, 65536))

    try:
        with trio.fail_after(10):
            async with (
                open_backend("File", name="serial", file=path) as backend,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(read_all)
                await backend.write(output)
    finally:
        os.close(reader)

    assert bytes(received) == output


async def test_file_full_disk_warns_once_and_reports_the_loss(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_backend("File", name="serial", file="/dev/full") as backend:
        await backend.write(b"lost")
        await backend.write(b"lost too")

    warnings = [record.getMessage() for record in caplog.records]
    assert warnings == [
        "The serial cannot be written: No space left on device; "
        "its output is dropped until it can be",
        "The serial lost 12 bytes of output",
    ]


async def test_output_that_can_be_written_again_resumes(caplog: pytest.LogCaptureFixture) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    reader, writer = os.pipe()
    try:
        async with serve_output(full, "serial") as output:
            await output.write(b"lost")
            os.dup2(writer, full)
            await output.write(b"kept")

        assert os.read(reader, 100) == b"kept"
        assert caplog.records[-1].getMessage() == "The serial lost 4 bytes of output"
    finally:
        for fd in (full, reader, writer):
            os.close(fd)


async def test_output_cancelled_write_is_finished_later() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    capacity = 65536
    try:
        async with serve_output(writer, "serial") as output:
            with trio.move_on_after(0.02) as scope:
                await output.write(b"a" * capacity + b"tail ")
            received = os.read(reader, capacity)
            await output.write(b"end")
            received += os.read(reader, capacity)
    finally:
        os.close(reader)
        os.close(writer)

    assert scope.cancelled_caught
    assert received == b"a" * capacity + b"tail end"


async def test_output_left_ignores_what_comes_after() -> None:
    reader, writer = os.pipe()
    async with serve_output(writer, "serial") as output:
        await output.write(b"before")
    await output.write(b"after")
    os.close(writer)

    assert os.read(reader, 100) == b"before"
    os.close(reader)


@pytest.mark.parametrize("mode", ["Off", "Null", "File"])
async def test_backend_without_input_read_waits_for_ever(mode: str, tmp_path: Path) -> None:
    path = str(tmp_path / "out")

    async with open_backend(mode, name="serial", file=path) as backend:
        await backend.write(b"nobody sees this")
        with trio.move_on_after(0.02) as scope:
            await backend.read()

    assert scope.cancelled_caught
    assert (backend.path, backend.size) == (None, None)


@pytest.mark.parametrize(("mode", "key"), [("File", "serial.file"), ("Socket", "serial.socket")])
def test_backend_mode_without_path_names_the_missing_key(mode: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"give {key}"):
        open_backend(mode, name="serial")


def test_backend_unknown_mode_names_the_modes() -> None:
    with pytest.raises(ConfigError, match="use Off, Null, Tty, File, Pty or Socket"):
        open_backend("Vga", name="serial")
