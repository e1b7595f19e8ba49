"""Host memory of the kind that a zone asks for: anonymous, a memfd, a file, huge pages."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterator

from vmm.errors import ConfigError, HostError, PeerError
from vmm.kvm_cffi import address_of, bind_to_numa_node
from vmm.machine.zones import HUGE_PAGE, Zone

MAP_NORESERVE = 0x4000
MFD_HUGETLB = 0x4
MFD_HUGE_SHIFT = 26
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
"""Of a memfd: whoever is given it cannot cut it off under who maps it. Holes can still be made."""
MADV_MERGEABLE = 12
MADV_HUGEPAGE = 14
MADV_NOHUGEPAGE = 15
MADV_DONTDUMP = 16


@contextlib.contextmanager
def map_zone(zone: Zone, size: int, fd: int, flags: int, offset: int) -> Iterator[mmap.mmap]:
    """Map ``size`` bytes of what a zone is backed by, with its advice applied."""
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    try:
        mapping = mmap.mmap(fd, size, flags=flags, prot=protection, offset=offset)
    except OSError as error:
        hint = (
            f"reserve {size // zone.page_size} pages of {zone.page_size >> 10} KiB in "
            "/proc/sys/vm/nr_hugepages or under /sys/kernel/mm/hugepages"
            if zone.hugepages
            else "make the VM smaller"
        )
        raise HostError.from_os_error(
            f"mmap of {size >> 20} MiB for memory zone {zone.id!r}", error, hint=hint
        ) from error
    with mapping:
        _advise(mapping, zone, size)
        yield mapping


def open_backing(
    zone: Zone, size: int, offset: int, given: int | None, stack: contextlib.ExitStack
) -> tuple[int, int, int]:
    """Open what a zone is mapped from: a descriptor or -1, the mmap flags, the file offset.

    ``given`` is a descriptor that another VMM uses already, and that is mapped as it does.
    """
    # Huge pages are always reserved: a guest that touched one too many would kill the process.
    lazy = 0 if zone.reserve or zone.hugepages else MAP_NORESERVE
    private = mmap.MAP_PRIVATE | lazy
    if given is not None:
        start = offset if zone.file is not None else 0
        return _duplicate(given, start + size, zone, stack), mmap.MAP_SHARED | lazy, start
    if zone.file is not None:
        fd = _open_file(zone.file, offset + size)
        stack.callback(os.close, fd)
        return fd, mmap.MAP_SHARED if zone.shared else private, offset
    if not (zone.shared or zone.hugepages):
        return -1, private | mmap.MAP_ANONYMOUS, 0
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    if zone.hugepages:
        flags |= MFD_HUGETLB | (zone.page_size.bit_length() - 1) << MFD_HUGE_SHIFT
    try:
        fd = os.memfd_create(f"ram-{zone.id}", flags)
        stack.callback(os.close, fd)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except OSError as error:
        raise HostError.from_os_error(
            f"memfd_create for memory zone {zone.id!r}",
            error,
            hint=f"does this host have pages of {zone.page_size >> 10} KiB?",
        ) from error
    return fd, mmap.MAP_SHARED | lazy, 0


def _duplicate(given: int, size: int, zone: Zone, stack: contextlib.ExitStack) -> int:
    """A copy of a descriptor that has so many bytes, and keeps them: to touch what it lacks would
    kill the VMM. A file that has a name cannot be kept so.
    """
    try:
        fd = os.dup(given)
        stack.callback(os.close, fd)
        found = os.fstat(fd).st_size
    except OSError as error:
        raise HostError.from_os_error("dup of a memory descriptor", error) from error
    if zone.file is None and not _is_sealed(fd):
        raise PeerError(
            f"The memory handed over for zone {zone.id!r} could be cut off by whoever else has it: "
            "it is no memfd with F_SEAL_SHRINK; have both VMMs use the same version"
        )
    if found < size:
        raise ConfigError(
            f"The memory handed over for zone {zone.id!r} has {found} bytes and needs {size}; have "
            "both VMMs use the same version and zones, or move the VM with local off"
        )
    return fd


def _is_sealed(fd: int) -> bool:
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK != 0
    except OSError:
        return False  # It is no memfd.


def _open_file(path: str, size: int) -> int:
    """Open a zone's file, or an unnamed one in a directory, and make it large enough."""
    try:
        if os.path.isdir(path):
            fd = os.open(path, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        else:
            fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size < size:
                os.ftruncate(fd, size)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise HostError.from_os_error("open of a memory zone's file", error, path=path) from error
    return fd


def _advise(mapping: mmap.mmap, zone: Zone, size: int) -> None:
    mapping.madvise(MADV_DONTDUMP)
    if not zone.hugepages and size >= HUGE_PAGE:
        # A kernel built without transparent huge pages refuses both: nothing is lost then.
        with contextlib.suppress(OSError):
            mapping.madvise(MADV_HUGEPAGE if zone.thp else MADV_NOHUGEPAGE)
    if zone.mergeable:
        try:
            mapping.madvise(MADV_MERGEABLE)
        except OSError as error:
            raise HostError.from_os_error(
                "madvise(MADV_MERGEABLE)",
                error,
                hint="this kernel has no KSM; turn mergeable off",
            ) from error
    if zone.host_numa_node is not None:
        with memoryview(mapping) as view:
            bind_to_numa_node(address_of(view), size, zone.host_numa_node)
