"""Configurations with a device more, or one less."""

from __future__ import annotations

from typing import Final

from vmm.config.pci import PciSlot
from vmm.config.vm import VmConfig
from vmm.errors import ConfigError

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
