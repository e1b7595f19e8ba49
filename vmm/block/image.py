"""Opening disk images: what is in the file decides, unless the caller says what it is.

Looking at the content is only as good as who wrote it. A guest that owns a raw disk can write the
header of another format to it, one that names files of the host, and be given those when the disk
is opened the next time. So a disk whose format was only detected never lets its guest write the
first sector.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from vmm.block.formats import HEAD_BYTES, TAIL_BYTES, Format, detect
from vmm.block.raw import PAGE, SECTOR, RawImage, open_file
from vmm.errors import ConfigError, HostError, UnsupportedError

logger = logging.getLogger(__name__)


class OpenImage(NamedTuple):
    """An image and what was found out about it.

    ``guards_first_sector``: the guest must not write it, see above.
    """

    file: RawImage
    format: Format
    guards_first_sector: bool


@contextmanager
def open_image(
    path: str, *, wanted: Format | None, read_only: bool, direct: bool
) -> Iterator[OpenImage]:
    """Open an image; leaving closes it.

    ``wanted`` is the format that the caller says it has, None to have it detected. Raises:
    ConfigError (caller) for what is no image, empty, or of another format than wanted,
    UnsupportedError for a format that cannot be served, HostError.
    """
    fd = open_file(path, read_only=read_only, direct=direct)
    try:
        format = wanted if wanted is Format.RAW else _detect(fd, path, wanted)
        if format is not Format.RAW:
            raise UnsupportedError(
                f"{path} is an image of format {format}, which this version of the VMM cannot "
                "serve; convert it to raw (qemu-img convert -O raw)"
            )
        image = RawImage(fd, path, read_only=read_only, direct=direct)
    except BaseException:
        os.close(fd)
        raise
    try:
        _check_size(image)
        yield OpenImage(image, format, guards_first_sector=wanted is None)
    finally:
        image.close()


def _detect(fd: int, path: str, wanted: Format | None) -> Format:
    found = detect(*_ends(fd, path))
    if wanted is None:
        logger.warning(
            "The format of %s was detected as %s; say so with image_type, for a guest could make "
            "it look otherwise",
            path,
            found,
        )
    elif found is not wanted:
        raise ConfigError(
            f"image type mismatch: {path} has format {found}, disks[].image_type (--disk "
            f"image_type=…) says {wanted}; correct one of them"
        )
    return found


def _ends(fd: int, path: str) -> tuple[bytes, bytes]:
    """The first and the last bytes, read in whole pages as direct I/O wants it."""
    size = os.lseek(fd, 0, os.SEEK_END)
    try:
        head = _read_page(fd, 0)[:HEAD_BYTES]
        start = max(0, size - TAIL_BYTES)
        page = start // PAGE * PAGE
        tail = (_read_page(fd, page) + _read_page(fd, page + PAGE))[start - page : size - page]
    except OSError as error:
        raise HostError.from_os_error("reading of a disk image", error, path=path) from error
    return head, tail


def _read_page(fd: int, offset: int) -> bytes:
    with mmap.mmap(-1, PAGE) as page:
        return page[: os.preadv(fd, [page], offset)]


def _check_size(image: RawImage) -> None:
    if image.size < SECTOR:
        raise ConfigError(
            f"{image.path} has {image.size} bytes, less than the {SECTOR} of one sector; make it "
            "as large as the disk is to be"
        )
    if rest := image.size % SECTOR:
        logger.warning(
            "The last %d bytes of %s are less than a sector: the guest does not see them",
            rest,
            image.path,
        )
