"""The ports by which a guest resets and powers off: i8042 and the ACPI sleep register."""

from __future__ import annotations

import pytest

from vmm.legacy.acpi_shutdown import AcpiShutdown
from vmm.legacy.i8042 import I8042


class Requests:
    """The guest's requests, in order."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def request_reset(self) -> None:
        self.made.append("reset")

    def request_shutdown(self) -> None:
        self.made.append("shutdown")


@pytest.mark.parametrize(
    ("offset", "size", "value"),
    [(0, 1, 0x20), (1, 1, 0xFF), (3, 1, 0x00), (0, 4, 0x00FFFF20), (3, 2, 0xFF00)],
)
def test_i8042_read_gives_control_b_and_status(offset: int, size: int, value: int) -> None:
    assert I8042(Requests()).read(offset, size) == value


@pytest.mark.parametrize(
    ("offset", "size", "value", "made"),
    [
        (3, 1, 0xFE, ["reset"]),
        (2, 2, 0xFE00, ["reset"]),
        (3, 1, 0xAA, []),
        (0, 1, 0xFE, []),
        (0, 4, 0x00FEFEFE, []),
    ],
)
def test_i8042_pulse_of_the_reset_line_requests_reset(
    offset: int, size: int, value: int, made: list[str]
) -> None:
    requests = Requests()

    I8042(requests).write(offset, size, value)

    assert requests.made == made


@pytest.mark.parametrize(
    ("offset", "size", "value", "made"),
    [
        (0, 1, 0x01, ["reset"]),
        (0, 1, 0x34, ["shutdown"]),
        (0, 4, 0x34, ["shutdown"]),
        (0, 1, 0x14, []),
        (0, 1, 0x20, []),
        (1, 1, 0x34, []),
    ],
)
def test_acpi_shutdown_write_requests_what_the_value_says(
    offset: int, size: int, value: int, made: list[str]
) -> None:
    requests = Requests()

    AcpiShutdown(requests).write(offset, size, value)

    assert requests.made == made


def test_acpi_shutdown_read_gives_zero() -> None:
    assert AcpiShutdown(Requests()).read(0, 1) == 0
