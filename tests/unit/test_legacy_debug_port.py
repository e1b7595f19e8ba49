"""Port 0x80: which codes are worth a line in the log."""

from __future__ import annotations

import logging
import os

import pytest
import trio
import trio.testing

from vmm.legacy.debug_port import BURST_LINES, DebugPort


class Ring:
    """A ring that C would fill."""

    def __init__(self) -> None:
        self.fd = -1
        self.codes = b""

    def drain(self) -> bytes:
        codes, self.codes = self.codes, b""
        return codes


class Clock:
    """Seconds since the VM started."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (0x00, "firmware"),
        (0x1F, "firmware"),
        (0x20, "bootloader"),
        (0x40, "kernel"),
        (0x7F, "userspace"),
    ],
)
def test_debug_port_code_in_a_range_is_a_warning_with_name_and_time(
    code: int, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    port = DebugPort(Ring(), clock)
    clock.now = 1.5

    port.report(bytes([code]))

    assert lines(caplog) == [f"Debug port: {name} code {code:#04x} at 1.500000 s"]


def test_debug_port_code_outside_the_ranges_is_no_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)

    DebugPort(Ring(), Clock()).report(b"\x80\xff")

    assert lines(caplog) == []
    assert len(lines(caplog, logging.DEBUG)) == 2


def test_debug_port_run_of_one_code_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    port = DebugPort(Ring(), Clock())

    port.report(b"\x40" * 60000)
    port.report(b"\x40" * 60000 + b"\x41")

    assert [line.split()[4] for line in lines(caplog)] == ["0x40", "0x41"]


def test_debug_port_flood_is_bounded_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    port = DebugPort(Ring(), clock)

    port.report(b"\x01\x02" * 1000)
    flooded = len(lines(caplog))
    clock.now = 1.0
    port.report(b"\x43")

    assert flooded == BURST_LINES
    left_out = 2000 - BURST_LINES
    assert lines(caplog)[-1] == (
        f"Debug port: kernel code 0x43 at 1.000000 s, after {left_out} codes that were left out"
    )


async def test_debug_port_run_logs_what_the_ring_holds(caplog: pytest.LogCaptureFixture) -> None:
    ring = Ring()
    ring.fd = os.eventfd(0, os.EFD_NONBLOCK)
    async with trio.open_nursery() as nursery:
        await nursery.start(DebugPort(ring, Clock()).run)
        ring.codes = b"\x41"
        os.eventfd_write(ring.fd, 1)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    os.close(ring.fd)

    assert len(lines(caplog)) == 1
