"""Device status and feature negotiation."""

from __future__ import annotations

import pytest

from vmm.virtio.spec import Feature, Status
from vmm.virtio.status import Negotiation, Outcome

OFFERED = Feature.VERSION_1 | Feature.RING_EVENT_IDX | 0b101
FOUND = Status.ACKNOWLEDGE | Status.DRIVER
READY = FOUND | Status.FEATURES_OK | Status.DRIVER_OK


def negotiated(features: int = Feature.VERSION_1) -> Negotiation:
    negotiation = Negotiation(OFFERED)
    negotiation.write_status(FOUND)
    negotiation.write_features(0, features & 0xFFFF_FFFF)
    negotiation.write_features(1, features >> 32)
    negotiation.write_status(FOUND | Status.FEATURES_OK)
    return negotiation


def test_status_set_bit_by_bit_activates_once() -> None:
    negotiation = negotiated()

    assert negotiation.write_status(READY) is Outcome.ACTIVATE
    assert negotiation.write_status(READY) is Outcome.NOTHING
    assert negotiation.status == READY
    assert negotiation.is_active


def test_status_written_in_one_go_takes_every_step_in_order() -> None:
    negotiation = Negotiation(OFFERED)
    negotiation.write_features(1, 1)

    assert negotiation.write_status(READY) is Outcome.ACTIVATE
    assert negotiation.status == READY


@pytest.mark.parametrize(
    ("value", "taken"),
    [
        (Status.DRIVER, 0),
        (Status.DRIVER_OK, 0),
        (Status.ACKNOWLEDGE | Status.FEATURES_OK, Status.ACKNOWLEDGE),
        (FOUND | Status.DRIVER_OK, FOUND),
        (Status.NEEDS_RESET, 0),
        (0x30, 0),
    ],
)
def test_status_bit_without_its_predecessors_is_not_taken(value: int, taken: int) -> None:
    negotiation = Negotiation(OFFERED)
    negotiation.write_features(1, 1)

    assert negotiation.write_status(value) is Outcome.NOTHING
    assert negotiation.status == taken


@pytest.mark.parametrize("features", [0, 0b101, Feature.VERSION_1 | 0b10, OFFERED | 1 << 63])
def test_features_not_offered_or_without_version_1_leave_features_ok_clear(features: int) -> None:
    negotiation = negotiated(features)

    assert negotiation.status == FOUND
    assert negotiation.write_status(READY) is Outcome.NOTHING


def test_features_can_be_chosen_again_after_a_refusal() -> None:
    negotiation = negotiated(Feature.VERSION_1 | 0b10)

    negotiation.write_features(0, 0b100)
    negotiation.write_status(FOUND | Status.FEATURES_OK)

    assert negotiation.status == FOUND | Status.FEATURES_OK
    assert negotiation.accepted == Feature.VERSION_1 | 0b100


def test_features_written_after_features_ok_are_dropped() -> None:
    negotiation = negotiated()

    negotiation.write_features(0, 0b100)

    assert negotiation.accepted == Feature.VERSION_1


def test_feature_pages_beyond_the_last_are_empty() -> None:
    negotiation = Negotiation(OFFERED)
    negotiation.write_features(2, 0xFFFF_FFFF)

    assert negotiation.offered_page(1) == 1
    assert negotiation.offered_page(2) == negotiation.offered_page(0xFFFF_FFFF) == 0
    assert negotiation.accepted == negotiation.accepted_page(2) == 0


def test_status_zero_resets() -> None:
    negotiation = negotiated()
    negotiation.write_status(READY)

    assert negotiation.write_status(0) is Outcome.RESET
    assert negotiation.status == negotiation.accepted == 0


def test_status_bit_that_is_left_out_stays_set() -> None:
    negotiation = negotiated()

    negotiation.write_status(Status.ACKNOWLEDGE)

    assert negotiation.status == FOUND | Status.FEATURES_OK


def test_need_reset_and_failed_end_activity_until_reset() -> None:
    for broken in (Status.NEEDS_RESET, Status.FAILED):
        negotiation = negotiated()
        negotiation.write_status(READY)
        if broken is Status.FAILED:
            negotiation.write_status(READY | Status.FAILED)
        else:
            negotiation.need_reset()

        assert not negotiation.is_active
        assert negotiation.status == READY | broken
        assert negotiation.write_status(READY | broken) is Outcome.NOTHING
        assert negotiation.write_status(0) is Outcome.RESET
        assert negotiation.status == 0
