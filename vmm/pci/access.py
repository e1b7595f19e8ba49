"""The two ways a guest reaches configuration space: the ports at 0xCF8 and the ECAM window.

Reads are answered before they get here, out of the shadow; these handlers take the writes, and
answer reads all the same.

Spec: PCI Local Bus 3.0, section 3.2.2.3.2; PCI Express 5.0, section 7.2.2.
"""

from __future__ import annotations

from typing import Protocol

from vmm.pci.segment import SHADOW_SIZE, SLOT_STRIDE, Segment

CONFIG_DATA_PORT = 0xCFC
CONFIG_DATA_SIZE = 4

_ENABLE = 1 << 31
_BUS_SHIFT, _DEVICE_SHIFT, _FUNCTION_SHIFT = 16, 11, 8
_ECAM_FUNCTION_SHIFT = 12


class ConfigAddress(Protocol):
    """The register at port 0xCF8."""

    @property
    def address(self) -> int:
        """What the guest wrote there last."""


class ConfigPorts:
    """The four data ports at 0xCFC, for the bus of segment 0."""

    def __init__(self, config_address: ConfigAddress, segment: Segment) -> None:
        self._config_address = config_address
        self._segment = segment

    def read(self, offset: int, size: int) -> int:
        """Give what the addressed register holds; all ones where nothing is addressed."""
        at = self._ecam_offset(offset, size)
        return (1 << 8 * size) - 1 if at is None else self._segment.read(at, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write to the addressed register."""
        at = self._ecam_offset(offset, size)
        if at is not None:
            self._segment.write(at, size, value)

    def _ecam_offset(self, offset: int, size: int) -> int | None:
        """Say which bytes are addressed; None with the enable bit off or outside the window."""
        address = self._config_address.address
        bus = address >> _BUS_SHIFT & 0xFF
        if not address & _ENABLE or bus != 0 or offset + size > CONFIG_DATA_SIZE:
            return None
        device = address >> _DEVICE_SHIFT & 0x1F
        function = address >> _FUNCTION_SHIFT & 0x7
        page = device * SLOT_STRIDE + (function << _ECAM_FUNCTION_SHIFT)
        return page + (address & 0xFC) + offset


class Ecam:
    """The memory window of one segment."""

    SIZE = SHADOW_SIZE

    def __init__(self, segment: Segment) -> None:
        self._segment = segment

    def read(self, offset: int, size: int) -> int:
        """Give what the register holds."""
        return self._segment.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write to the register."""
        self._segment.write(offset, size, value)
