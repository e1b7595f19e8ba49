"""The UEFI firmware built for Cloud Hypervisor's machine, as Debian ships it."""

from __future__ import annotations

from pathlib import Path

from tools.images import debian
from tools.images.cache import ImageError

_PACKAGE = "cloudhv-efi-x86-64"


def cloudhv(*, newest: bool = False) -> Path:
    """Return CLOUDHV.fd, a 4 MiB PVH ELF image.

    Raises: ImageError: the package could not be fetched (host).
    """
    tree = debian.fetch(_PACKAGE, "sid", newest=newest)
    image = tree / "usr" / "share" / _PACKAGE / "CLOUDHV.fd"
    if not image.is_file():
        raise ImageError(f"{_PACKAGE} {debian.version(tree)} no longer has {image.name}.")
    return image
