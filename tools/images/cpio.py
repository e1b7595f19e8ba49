"""Write cpio archives in the newc form, which is what the kernel unpacks as its initramfs.

Written here rather than by the cpio tool, so that device nodes need no root and the same input
gives the same bytes. Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

_ALIGN_BYTES = 4
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True)
class _Entry:
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


@dataclass
class Archive:
    """A file tree to be written; a directory is made for every path that needs one."""

    _entries: dict[str, _Entry] = field(default_factory=dict)

    def directory(self, path: str, permissions: int = 0o755) -> None:
        """Add a directory, and those above it."""
        self._add(path, _Entry(stat.S_IFDIR | permissions))

    def file(self, path: str, data: bytes, permissions: int = 0o644) -> None:
        """Add a regular file."""
        self._add(path, _Entry(stat.S_IFREG | permissions, data))

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(path, _Entry(stat.S_IFLNK | 0o777, target.encode()))

    def character_device(self, path: str, major: int, minor: int) -> None:
        """Add a character device node, readable and writable by root."""
        self._add(path, _Entry(stat.S_IFCHR | 0o600, device=(major, minor)))

    def encode(self) -> bytes:
        """Return the archive's bytes, a whole number of 512-byte blocks."""
        parts = [
            part for number, name in enumerate(self._entries, 1) for part in self._one(number, name)
        ]
        parts.extend(_encode(0, _TRAILER, _Entry(0)))
        size = sum(map(len, parts))
        parts.append(bytes(-size % 512))
        return b"".join(parts)

    def _one(self, number: int, name: str) -> Iterator[bytes]:
        return _encode(number, name, self._entries[name])

    def _add(self, path: str, entry: _Entry) -> None:
        name = path.lstrip("/")
        for above in reversed(PurePosixPath(name).parents[:-1]):
            self._entries.setdefault(str(above), _Entry(stat.S_IFDIR | 0o755))
        self._entries[name] = entry


def _encode(number: int, name: str, entry: _Entry) -> Iterator[bytes]:
    """Yield the header, the name and the data of one entry, each padded to 4 bytes."""
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (
        number,
        entry.mode,
        *(0, 0),  # owner and group: root
        links,
        0,  # modification time: none, so that equal input gives equal bytes
        len(entry.data),
        *(0, 0),  # the device the file was on
        *entry.device,
        len(encoded),
        0,  # checksum, unused in this form
    )
    header = b"070701" + b"".join(b"%08X" % value for value in fields) + encoded
    yield header + bytes(-len(header) % _ALIGN_BYTES)
    yield entry.data + bytes(-len(entry.data) % _ALIGN_BYTES)
