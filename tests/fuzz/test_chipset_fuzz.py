"""The whole board under a hostile guest.

Invariant: no sequence of accesses to any port or to any address of a claimed range, of any size and
value, makes anything raise; every read fits its size; and afterwards the board can still be closed
and leaves no descriptor and no mapping behind.

The accesses take the way that a vCPU's exits take: first the mechanism in C that is mapped there,
then, where that declines, the bus. The VM is KVM's own where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kvm.guests.leaks import check_nothing_left, holdings
from tests.kvm.guests.machines import Recorder
from vmm.boot import layout
from vmm.config.vm import VmConfig
from vmm.errors import HostError
from vmm.kvm_cffi import ExitRouter, Kvm, Loop
from vmm.kvm_cffi.constants import KVM_CAP_SPLIT_IRQCHIP
from vmm.machine.bus import ALL_ONES, Bus
from vmm.machine.chipset import Chipset, open_chipset
from vmm.machine.consoles import Consoles
from vmm.machine.memory import GuestMemory
from vmm.machine.zones import Zone

MIB = 1 << 20
PHYS_BITS = 40
PINS = 24
CONFIG = VmConfig.model_validate(
    {
        "payload": {"kernel": "/boot/kernel"},
        "memory": {"size": 4 * MIB},
        "serial": {"mode": "Null"},
        "console": {"mode": "Off"},
        "debug_console": {"mode": "Null"},
    }
)


class Mapped(NamedTuple):
    """A range of the exit router."""

    base: int
    size: int
    mechanism: Any


class RecordingRouter(ExitRouter):
    """The exit router, which also remembers what is where."""

    def __init__(self) -> None:
        super().__init__()
        self.ports: list[Mapped] = []
        self.mmio: list[Mapped] = []

    def map_pio(self, base: int, size: int, mechanism: Any) -> None:  # noqa: ANN401
        super().map_pio(base, size, mechanism)
        self.ports.append(Mapped(base, size, mechanism))

    def map_mmio(self, base: int, size: int, mechanism: Any) -> None:  # noqa: ANN401
        super().map_mmio(base, size, mechanism)
        self.mmio.append(Mapped(base, size, mechanism))


class FakeVm:
    """What the chipset needs of a VM, where the host has no KVM."""

    def set_user_memory_region(self, *_: object, **__: object) -> None:
        """Take it."""

    def set_gsi_routing(self, *_: object) -> None:
        """Take it."""

    def irqfd(self, *_: object, **__: object) -> None:
        """Take it."""


class NoWishes:
    """The owner of a VM that grants nothing."""

    def request_reset(self) -> None:
        """Ignore it."""

    def request_shutdown(self) -> None:
        """Ignore it."""


class Board:
    """A chipset, and accesses to it as a vCPU would make them."""

    def __init__(self, chipset: Chipset, router: RecordingRouter) -> None:
        self._chipset = chipset
        self._router = router

    def ranges(self, *, pio: bool) -> list[Mapped]:
        """What is mapped in an address space."""
        return self._router.ports if pio else self._router.mmio

    def access(self, *, pio: bool, address: int, size: int, value: int | None) -> int:
        """Write a value, or read if there is none, as the vCPU's thread and its task do."""
        spaces = self._chipset.spaces
        bus: Bus = spaces.ports if pio else spaces.mmio
        mapped = _find(self.ranges(pio=pio), address)
        if mapped is not None and not isinstance(mapped.mechanism, Loop):
            offset = address - mapped.base
            if value is None:
                answer = mapped.mechanism.read(offset, size)
                if answer is not None:
                    return int(answer)
            elif mapped.mechanism.write(offset, value, size):
                return 0
        if value is None:
            return bus.read(address, size)
        bus.write(address, size, value)
        return 0


def _find(ranges: list[Mapped], address: int) -> Mapped | None:
    return next((each for each in ranges if each.base <= address < each.base + each.size), None)


@contextmanager
def open_board() -> Iterator[Board]:
    """Build a board on a VM without vCPUs."""
    with ExitStack() as stack:
        vm: Any = FakeVm()
        try:
            kvm = stack.enter_context(Kvm.open())
        except HostError:
            pass
        else:
            vm = stack.enter_context(kvm.create_vm())
            vm.enable_cap(KVM_CAP_SPLIT_IRQCHIP, PINS)
        ranges = layout.ram_ranges(CONFIG.total_memory())
        zone = Zone("ram", CONFIG.total_memory())
        memory = stack.enter_context(GuestMemory.open([zone], ranges))
        areas = layout.device_areas(CONFIG.total_memory(), PHYS_BITS)
        router = RecordingRouter()
        consoles = Consoles(Recorder(), Recorder(), Recorder())
        chipset = stack.enter_context(
            open_chipset(vm, router, memory, areas, CONFIG, consoles, NoWishes())
        )
        yield Board(chipset, router)


SIZES = st.sampled_from([1, 2, 4, 8])
# Small values reach registers and indices, large ones what lies behind their ends.
VALUES = st.one_of(st.integers(0, 0xFF), st.integers(0, (1 << 64) - 1))
ACCESSES = st.lists(
    st.tuples(
        st.booleans(),
        st.integers(0, 63),  # Which range, modulo how many there are; 0 is any address at all.
        st.one_of(st.integers(0, 0x40), st.integers(0, (1 << 64) - 1)),
        SIZES,
        st.none() | VALUES,
    ),
    min_size=1,
    max_size=60,
)


def address_of_access(board: Board, *, pio: bool, which: int, offset: int) -> int:
    """Choose an address within one of the ranges, or anywhere."""
    ranges = board.ranges(pio=pio)
    which %= len(ranges) + 1
    if which == 0:
        return offset & (0xFFFF if pio else (1 << 64) - 1)
    base, size, _ = ranges[which - 1]
    return base + offset % size


@given(accesses=ACCESSES)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_accesses_are_answered_and_the_board_closes(
    accesses: list[tuple[bool, int, int, int, int | None]],
) -> None:
    before = holdings()

    with open_board() as board:
        for pio, which, offset, size, value in accesses:
            if pio and size == 8:
                continue  # There is no such instruction.
            address = address_of_access(board, pio=pio, which=which, offset=offset)
            fitting = None if value is None else value & ALL_ONES[size]
            answer = board.access(pio=pio, address=address, size=size, value=fitting)
            assert 0 <= answer <= ALL_ONES[size]

    check_nothing_left(before)


def test_every_range_is_reached_by_the_fuzzer() -> None:
    with open_board() as board:
        ports, mmio = (board.ranges(pio=pio) for pio in (True, False))

    ports_at, mmio_at = ({each.base for each in ranges} for ranges in (ports, mmio))
    assert ports_at >= {0x61, 0x70, 0x80, 0xE9, 0x3F8, 0x402, 0x600, 0x608, 0xCF8}
    assert mmio_at >= {layout.IOAPIC, layout.ECAM}


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_port_answers_each_size(size: int) -> None:
    with open_board() as board:
        for port in range(0, 0x10000 - size, size):
            answer = board.access(pio=True, address=port, size=size, value=None)
            assert 0 <= answer <= ALL_ONES[size]
