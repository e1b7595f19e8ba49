"""Configurations with a device more, or one less, or memory elsewhere on the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm.config.pci import PciSlot
from vmm.config.vm import VmConfig
from vmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.config.requests import ZoneUpdate

CHANGING_SECTIONS: Final = (
    "disks",
    "net",
    "fs",
    "generic_vhost_user",
    "pmem",
    "vsock",
    "vdpa",
    "devices",
    "user_devices",
)
"""The sections whose devices may come and go while a VM is there."""


def with_device(config: VmConfig, section: str, entry: PciSlot) -> VmConfig:
    """Give the configuration with one more entry in a section.

    Raises: ConfigError (caller) when the section has room for one and has it.
    """
    if not _is_list(section):
        if getattr(config, section) is not None:
            raise ConfigError(
                f"Too many virtio-{section} devices: a VM has one, and it is there already; remove "
                "that first"
            )
        return config.model_copy(update={section: entry})
    return config.model_copy(update={section: (*(getattr(config, section) or ()), entry)})


def without_device(config: VmConfig, id: str) -> VmConfig:
    """Give the configuration without the device of an id; the same object when it has none."""
    for section in CHANGING_SECTIONS:
        value = getattr(config, section)
        entries: tuple[PciSlot, ...] = value if _is_list(section) else (value,)
        kept = tuple(entry for entry in entries or () if entry is None or entry.id != id)
        if len(kept) != len(entries or ()):
            return config.model_copy(update={section: kept or None})
    return config


def _is_list(section: str) -> bool:
    return section != "vsock"


def with_nodes(config: VmConfig, updates: Sequence[ZoneUpdate]) -> VmConfig:
    """Give the configuration with memory zones on other NUMA nodes of the host.

    Raises: ConfigError (caller) for a zone that there is not.
    """
    if not updates:
        return config
    nodes = {update.id: update.host_numa_node for update in updates}
    names = [zone.id for zone in config.memory.zones or ()]
    if unknown := nodes.keys() - set(names):
        raise ConfigError(
            f"zone_updates names {', '.join(sorted(unknown))}, and the VM has no such memory zone; "
            f"it has {', '.join(names) or 'none'}"
        )
    zones = tuple(
        zone.model_copy(update={"host_numa_node": nodes.get(zone.id, zone.host_numa_node)})
        for zone in config.memory.zones or ()
    )
    memory = config.memory.model_copy(update={"zones": zones})
    return config.model_copy(update={"memory": memory})
