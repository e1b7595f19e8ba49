"""What of the configuration this version can build; the rest is refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vmm.errors import UnsupportedError

if TYPE_CHECKING:
    from vmm.config.vm import VmConfig

SECTIONS = {
    "fs": "--fs",
    "generic_vhost_user": "--generic-vhost-user",
    "devices": "--device",
    "user_devices": "--user-device",
    "vdpa": "--vdpa",
    "tpm": "--tpm",
}
"""Sections without a device here, and the flag of each."""

BACK_ENDS = {
    "fs": "vhost-user",
    "generic_vhost_user": "vhost-user",
    "devices": "VFIO",
    "user_devices": "vfio-user",
    "vdpa": "vDPA",
}
"""What devices of such a section would be served by."""


def check_supported(config: VmConfig) -> None:
    """Refuse what cannot be built yet. Raises: UnsupportedError with all of it by name."""
    missing = list(_missing(config))
    if missing:
        raise UnsupportedError(*missing)


def _missing(config: VmConfig) -> Iterator[str]:
    for name, flag in SECTIONS.items():
        if getattr(config, name):
            yield _sentence(name, flag, BACK_ENDS.get(name))
    yield from _missing_platform(config)
    if config.payload is not None and config.payload.igvm is not None:
        yield _sentence("payload.igvm", "--igvm")


def _missing_platform(config: VmConfig) -> Iterator[str]:
    platform = config.platform
    if platform is None:
        return
    for name in ("tdx", "sev_snp", "iommufd"):
        if getattr(platform, name):
            yield _sentence(f"platform.{name}", f"--platform {name}=…")


def _sentence(name: str, flag: str, back_end: str | None = None) -> str:
    missing = "" if back_end is None else f" needs the back end {back_end}, which"
    return f"{name} ({flag}){missing} is not in this version of the VMM; leave it out"
