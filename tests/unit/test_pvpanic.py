"""The panic register, behind a PCI configuration space."""

from __future__ import annotations

import pytest

from vmm.legacy.pvpanic import Pvpanic
from vmm.testing.virtio_pci import RecordedEvents

BAR_ADDRESS = 0xE000_0000


@pytest.fixture
def events() -> RecordedEvents:
    return RecordedEvents()


@pytest.fixture
def pvpanic(events: RecordedEvents) -> Pvpanic:
    made = Pvpanic("__pvpanic", events)
    made.configuration.add_bar(made.bar, BAR_ADDRESS)
    return made


def test_function_is_the_one_that_linux_knows(pvpanic: Pvpanic) -> None:
    space = pvpanic.configuration

    assert space.read(0, 4) == 0x0011_1B36
    assert space.read(8, 4) == 0x0880_0001
    assert space.read(4, 2) == 0x0103
    assert space.read(0x10, 4) == BAR_ADDRESS
    assert pvpanic.bar.address == BAR_ADDRESS


def test_read_gives_the_events_it_knows(pvpanic: Pvpanic) -> None:
    assert pvpanic.read(0, 1) == 3
    assert pvpanic.read(1, 1) == 0
    assert pvpanic.read(8, 8) == 0


@pytest.mark.parametrize(
    ("value", "event"),
    [(1, "panic"), (2, "crash_loaded"), (3, "panic"), (0, "unknown_event"), (4, "unknown_event")],
)
def test_write_is_an_event(
    pvpanic: Pvpanic, events: RecordedEvents, value: int, event: str
) -> None:
    pvpanic.write(0, 1, value)

    assert events.seen == [("guest", "panic", {"event": event})]


def test_guest_that_repeats_itself_is_heard_once(pvpanic: Pvpanic, events: RecordedEvents) -> None:
    for value in (2, 1) * 1000:
        pvpanic.write(0, 1, value)

    assert [properties["event"] for _, _, properties in events.seen] == ["crash_loaded", "panic"]


def test_write_beside_the_register_is_dropped(pvpanic: Pvpanic, events: RecordedEvents) -> None:
    for offset in range(1, 16):
        pvpanic.write(offset, 1, 1)

    assert events.seen == []
