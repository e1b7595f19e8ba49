"""Rules for a VM that is brought back, from a snapshot or another host: what is asked for, and what
replaces the descriptors it had."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vmm.config.requests import MemoryRestoreMode
from vmm.config.rules.problem import Problem, at
from vmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.config.requests import (
        ReceiveMigrationData,
        RestoreConfig,
        RestoredDeviceConfig,
        RestoredNetConfig,
        ZoneUpdate,
    )
    from vmm.config.vm import VmConfig

    Named = RestoredNetConfig | RestoredDeviceConfig | ZoneUpdate

logger = logging.getLogger("vmm.config")


def validate_restore(restore: RestoreConfig, saved: VmConfig | None = None) -> None:
    """Check every rule; those about the saved VM only with its configuration.

    Raises: ConfigError (caller) with one sentence a broken rule.
    """
    problems = [*_asked(restore)]
    if saved is not None:
        problems += _networks(at("restore", restore, "net_fds"), restore.net_fds or (), saved)
    if problems:
        raise ConfigError(*(each.text for each in problems))


def validate_received(data: ReceiveMigrationData, sent: VmConfig | None = None) -> None:
    """The same of what is asked of a destination, and with the configuration of the VM that comes.

    Raises: ConfigError (caller) with one sentence a broken rule.
    """
    nets = data.net_fds or ()
    problems = [*_repeated("net_fds", nets)]
    if sent is not None:
        problems += _networks("net_fds (vm.receive-migration)", nets, sent)
    if problems:
        raise ConfigError(*(each.text for each in problems))


def _asked(restore: RestoreConfig) -> Iterator[Problem]:
    if restore.prefault and restore.memory_restore_mode is MemoryRestoreMode.ONDEMAND:
        yield Problem(
            f"{at('restore', restore, 'prefault')} is on beside memory_restore_mode OnDemand: "
            "'prefault' reads all of the memory at first, on demand reads none; give one of them"
        )
    yield from _repeated(at("restore", restore, "net_fds"), restore.net_fds or ())
    yield from _repeated(at("restore", restore, "vfio_fds"), restore.vfio_fds or ())
    updates = restore.zone_updates
    if updates is not None and not updates:
        yield Problem(
            f"{at('restore', restore, 'zone_updates')} is empty; name a zone or leave it out"
        )
    yield from _repeated(at("restore", restore, "zone_updates"), updates or ())


def _repeated(place: str, named: Sequence[Named]) -> Iterator[Problem]:
    for id, times in Counter(each.id for each in named).items():
        if times > 1:
            yield Problem(f"{place}: Identifier {id} is not unique; name it once")


def _networks(place: str, nets: Sequence[RestoredNetConfig], saved: VmConfig) -> Iterator[Problem]:
    """Each network that had descriptors needs as many new ones; others have no use for any."""
    given = {each.id: each.num_fds if each.fds is None else len(each.fds) for each in nets}
    for net in saved.net or ():
        if net.fds is None:
            continue
        count = given.pop(net.id or "", None)
        if count is None:
            yield Problem(
                f"{place}: Net id {net.id} is associated with FDs and is required; "
                f"give {len(net.fds)} for it"
            )
        elif count != len(net.fds):
            yield Problem(
                f"{place}: Number of Net FDs passed for {net.id} is {count}; give {len(net.fds)}, "
                "as many as the network had"
            )
    if given:
        logger.warning("No network with descriptors is called %s: unused", ", ".join(given))
