"""Device status and feature negotiation: what a driver may do, and in which order.

The driver sets one bit after the other; a bit whose predecessors are not set is not taken. Zero
resets. All transitions are in ``STEPS``, and nothing here knows a device or a transport.

Spec: Virtio 1.2, sections 2.1 (status), 2.2 (features), 3.1.1 (driver requirements).
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from vmm.errors import ConfigError
from vmm.virtio.spec import FEATURE_PAGES, Feature, Status


class Step(NamedTuple):
    """A status bit and the bits that have to be set before it."""

    bit: Status
    needs: Status


_FOUND = Status.ACKNOWLEDGE | Status.DRIVER
STEPS = (
    Step(Status.ACKNOWLEDGE, Status(0)),
    Step(Status.DRIVER, Status.ACKNOWLEDGE),
    Step(Status.FEATURES_OK, _FOUND),
    Step(Status.DRIVER_OK, _FOUND | Status.FEATURES_OK),
    Step(Status.FAILED, Status(0)),
)
"""In the order of initialisation, so that one write may set several bits."""


class Outcome(Enum):
    """What a write to the status means for the device."""

    NOTHING = "nothing"
    RESET = "reset"
    ACTIVATE = "activate"


class Negotiation:
    """The status of one device and the features its driver accepted.

    ``offered`` are the device's feature bits; ``accepted`` are the driver's, as written so far.
    """

    def __init__(self, offered: int) -> None:
        # As a plain number: the complement of an IntFlag knows only the flag's own bits.
        self.offered = int(offered)
        self.accepted = 0
        self.status = Status(0)

    @property
    def is_active(self) -> bool:
        """Whether the driver drives the device and nothing is broken."""
        broken = Status.NEEDS_RESET | Status.FAILED
        return bool(self.status & Status.DRIVER_OK) and not self.status & broken

    def offered_page(self, page: int) -> int:
        """Give the 32 offered bits of a page; there are none past the last."""
        return self.offered >> 32 * page & 0xFFFF_FFFF if page < FEATURE_PAGES else 0

    def accepted_page(self, page: int) -> int:
        """Give the 32 accepted bits of a page."""
        return self.accepted >> 32 * page & 0xFFFF_FFFF if page < FEATURE_PAGES else 0

    def write_features(self, page: int, bits: int) -> None:
        """Take 32 bits the driver accepts, while it still may choose."""
        if page >= FEATURE_PAGES or self.status & Status.FEATURES_OK:
            return
        shift = 32 * page
        self.accepted = self.accepted & ~(0xFFFF_FFFF << shift) | (bits & 0xFFFF_FFFF) << shift

    def write_status(self, value: int) -> Outcome:
        """Take the driver's write; a bit that is set stays until reset."""
        if value == 0:
            self.reset()
            return Outcome.RESET
        before = self.status
        for step in STEPS:
            can_follow = self.status & step.needs == step.needs
            if value & step.bit and can_follow and self._agrees_to(step.bit):
                self.status |= step.bit
        is_new = self.status & ~before & Status.DRIVER_OK
        return Outcome.ACTIVATE if is_new and self.is_active else Outcome.NOTHING

    def load(self, status: int, accepted: int) -> None:
        """Take over what a snapshot kept. Raises: ConfigError for features not offered here."""
        if accepted & ~self.offered:
            raise ConfigError(
                f"its driver uses features {accepted & ~self.offered:#x}, which are not offered "
                "here; give it the configuration and the host resources that it had"
            )
        self.status, self.accepted = Status(status & sum(Status)), accepted

    def need_reset(self) -> None:
        """Say that the device cannot go on before a reset."""
        self.status |= Status.NEEDS_RESET

    def reset(self) -> None:
        """Forget everything the driver said."""
        self.accepted = 0
        self.status = Status(0)

    def _agrees_to(self, bit: Status) -> bool:
        """Whether the device takes a step; features it did not offer, or without
        VERSION_1, it refuses by leaving FEATURES_OK clear. One behind the IOMMU does not let
        its driver choose to be in front of it."""
        if bit is not Status.FEATURES_OK:
            return True
        needed = (Feature.VERSION_1 | Feature.ACCESS_PLATFORM) & self.offered | Feature.VERSION_1
        return not self.accepted & ~self.offered and self.accepted & needed == needed
