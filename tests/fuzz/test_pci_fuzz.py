"""Whatever a guest writes to configuration space, through ports or ECAM: nothing raises.

Beside that, what must hold after any writes: identity and capability headers stay, absent functions
read as all ones, and the events tell exactly where each BAR went.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vmm.pci.access import ConfigPorts, Ecam
from vmm.pci.bar import Bar, BarKind
from vmm.pci.configuration import BarMoved, Configuration, Identity
from vmm.pci.segment import SHADOW_SIZE, SLOT_STRIDE, Segment

SLOT = 1
HIGH, LOW, PORTS = 0x3F_FF80_0000, 0xE000_0000, 0xC000


class Tracked:
    """A function that follows the events as a transport would."""

    def __init__(self) -> None:
        self.configuration = Configuration(Identity(0x1AF4, 0x1042, 1, 0x80))
        self.bars = [
            Bar(0, BarKind.MEMORY64, 512 << 10),
            Bar(2, BarKind.MEMORY32, 4096, is_prefetchable=True),
            Bar(3, BarKind.IO, 8),
        ]
        for bar, address in zip(self.bars, (HIGH, LOW, PORTS), strict=True):
            self.configuration.add_bar(bar, address)
        self.mapped: dict[int, int | None] = {0: HIGH, 2: LOW, 3: PORTS}
        self.capability = self.configuration.add_capability(0x11, bytes(10), writable=b"\x00\xc0")

    def write_configuration(self, offset: int, size: int, value: int) -> None:
        for event in self.configuration.write(offset, size, value):
            if isinstance(event, BarMoved):
                assert self.mapped[event.bar] == event.old
                assert event.new != event.old
                self.mapped[event.bar] = event.new


class GuestAddress:
    address = 0


SIZES = st.sampled_from([1, 2, 4, 8])
VALUES = st.sampled_from([0, 0x7, 0xFFFF_FFFF, (1 << 64) - 1]) | st.integers(0, (1 << 64) - 1)
REGISTERS = st.sampled_from([*range(0x40), 0x41, 0x42, 0x43, 0xFF, 0x100, 0xFFD, 0xFFF, 0x1000])
OFFSETS = st.integers(0, SHADOW_SIZE + 8) | REGISTERS.map(lambda at: SLOT * SLOT_STRIDE + at)
ADDRESSES = st.integers(0, (1 << 32) - 1) | REGISTERS.map(
    lambda at: 1 << 31 | SLOT << 11 | at & 0xFF
)
ECAM_WRITES = st.tuples(st.just("ecam"), OFFSETS, SIZES, VALUES)
PORT_WRITES = st.tuples(ADDRESSES, st.integers(0, 7), SIZES, VALUES)


@given(st.lists(ECAM_WRITES | PORT_WRITES, max_size=40))
def test_any_writes_leave_configuration_space_whole(
    writes: list[tuple[str | int, int, int, int]],
) -> None:
    shadow = bytearray(SHADOW_SIZE)
    segment = Segment(0, memoryview(shadow))
    function = Tracked()
    segment.add(function, SLOT)
    guest_address = GuestAddress()
    ecam, ports = Ecam(segment), ConfigPorts(guest_address, segment)

    for where, offset, size, value in writes:
        value &= (1 << 8 * size) - 1
        if isinstance(where, int):
            guest_address.address = where
            ports.write(offset, size, value)
            assert 0 <= ports.read(offset, size) < 1 << 8 * size
        else:
            ecam.write(offset, size, value)
            assert 0 <= ecam.read(offset, size) < 1 << 8 * size

    at = SLOT * SLOT_STRIDE
    assert shadow[at : at + 4] == bytes.fromhex("f41a4210")
    assert shadow[at + function.capability] == 0x11
    assert shadow[at + 0x34] == function.capability
    assert shadow[at + 4096 :] == b"\xff" * (SHADOW_SIZE - at - 4096)
    for bar in function.bars:
        assert function.mapped[bar.index] == bar.address
        assert bar.address is None or bar.address % bar.size == 0
        assert segment.read(at + bar.offset, bar.length) & ~bar.writable == bar.flags
