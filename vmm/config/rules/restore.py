"""Rules for a restore: what is asked for, and what replaces the descriptors of the saved VM."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vmm.config.requests import MemoryRestoreMode
from vmm.config.rules.problem import Problem, at
from vmm.errors import ConfigError

if TYPE_CHECKING:
    from vmm.config.requests import RestoreConfig
    from vmm.config.vm import VmConfig

logger = logging.getLogger("vmm.config")


def validate_restore(restore: RestoreConfig, saved: VmConfig | None = None) -> None:
    """Check every rule; those about the saved VM only with its configuration.

    Raises: ConfigError (caller) with one sentence a broken rule.
    """
    problems = [*_asked(restore), *(_networks(restore, saved) if saved is not None else ())]
    if problems:
        raise ConfigError(*(each.text for each in problems))


def _asked(restore: RestoreConfig) -> Iterator[Problem]:
    if restore.prefault and restore.memory_restore_mode is MemoryRestoreMode.ONDEMAND:
        yield Problem(
            f"{at('restore', restore, 'prefault')} is on beside memory_restore_mode OnDemand: "
            "'prefault' reads all of the memory at first, on demand reads none; give one of them"
        )
    yield from _repeated(restore, "net_fds", [each.id for each in restore.net_fds or ()])
    yield from _repeated(restore, "vfio_fds", [each.id for each in restore.vfio_fds or ()])
    updates = restore.zone_updates
    if updates is not None and not updates:
        yield Problem(
            f"{at('restore', restore, 'zone_updates')} is empty; name a zone or leave it out"
        )
    yield from _repeated(restore, "zone_updates", [each.id for each in updates or ()])


def _repeated(restore: RestoreConfig, field: str, ids: list[str]) -> Iterator[Problem]:
    for id, times in Counter(ids).items():
        if times > 1:
            yield Problem(
                f"{at('restore', restore, field)}: Identifier {id} is not unique; name it once"
            )


def _networks(restore: RestoreConfig, saved: VmConfig) -> Iterator[Problem]:
    """Each network that had descriptors needs as many new ones; others have no use for any."""
    place = at("restore", restore, "net_fds")
    given = {
        each.id: each.num_fds if each.fds is None else len(each.fds)
        for each in restore.net_fds or ()
    }
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
