"""Landlock for the VMM: it keeps what its configuration names, and gives up every other file.

What is kept: the files of the configuration, the directories in which it makes and removes sockets,
what the program itself needs (KVM, taps, terminals, Python's modules), and ``landlock_rules``. What
is added later must have been covered by a rule. Nothing gives a file back: not a deleted VM, nor
one that is created without Landlock.

Spec: Cloud Hypervisor command line, "Seccomp / Landlock".
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from vmm.errors import HostError
from vmm.kvm_cffi.landlock import READ, WRITE, Right, Ruleset

if TYPE_CHECKING:
    from vmm.config.vm import VmConfig

logger = logging.getLogger(__name__)

PACKAGES = ("site-packages", "dist-packages")
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
"""What the modules of Python that are still to be imported are linked with."""

STREAMS = ("/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2")
RIGHTS = {"r": READ, "w": WRITE, "rw": READ | WRITE, "wr": READ | WRITE}


class Grant(NamedTuple):
    """A file or directory that is kept. One that is ``optional`` need not be there."""

    path: str
    rights: Right
    optional: bool = False


def confine(config: VmConfig) -> None:
    """Give up every file that the configuration does not need, if it asks for that.

    Raises: HostError when the kernel has no Landlock, or a file is not there.
    """
    if not config.landlock_enable:
        return
    with Ruleset() as ruleset:
        for grant in (*grants_of(config), *_needed(), *_removed_at_the_end()):
            try:
                ruleset.allow(grant.path, grant.rights)
            except HostError:
                if not grant.optional:
                    raise
        others = len(os.listdir("/proc/self/task")) - 1
        ruleset.restrict()
    logger.info("Landlock keeps all files from this process but those of its VM")
    if others:
        logger.warning("Landlock does not confine the %d threads that are there already", others)


def grants_of(config: VmConfig) -> Iterator[Grant]:
    """What a configuration needs, and what its rules add."""
    yield from _payload(config)
    for zone in config.memory.zones or ():
        if zone.file is not None:
            yield Grant(zone.file, READ | WRITE)
    for disk in config.disks or ():
        if disk.path is not None:
            yield Grant(disk.path, READ if disk.readonly else READ | WRITE)
    for pmem in config.pmem or ():
        yield Grant(pmem.file, READ if pmem.discard_writes else READ | WRITE)
    if config.ivshmem is not None:
        yield Grant(config.ivshmem.path, READ | WRITE)
    yield Grant(config.rng.src, READ)
    for console in (config.serial, config.console, config.debug_console):
        if console.mode == "File" and console.file is not None:
            yield Grant(console.file, READ | WRITE)
    if config.serial.mode == "Socket" and config.serial.socket is not None:
        yield Grant(_directory(config.serial.socket), WRITE)
    if config.vsock is not None:
        yield Grant(_directory(config.vsock.socket), WRITE)
    for rule in config.landlock_rules or ():
        yield Grant(rule.path, RIGHTS[rule.access])


def _payload(config: VmConfig) -> Iterator[Grant]:
    if config.payload is not None:
        for name in ("kernel", "initramfs", "firmware", "igvm"):
            path = getattr(config.payload, name)
            if path:
                yield Grant(path, READ)
        told = config.payload.fw_cfg_config
        for item in (told.items or ()) if told is not None else ():
            if item.file is not None:
                yield Grant(item.file, READ)


def _needed() -> Iterator[Grant]:
    """What the program needs whatever its VM is, and what it can do without on some hosts."""
    for path in ("/dev/kvm", "/dev/net/tun", "/dev/ptmx", "/dev/pts", *STREAMS):
        yield Grant(path, READ | WRITE, optional=True)
    for path in ("/proc/self", "/sys/devices", "/sys/dev/block", *LIBRARIES, *_modules()):
        yield Grant(path, READ, optional=True)


def _modules() -> Iterator[str]:
    """The directories of Python's modules."""
    yield from (sysconfig.get_path(name) for name in ("stdlib", "platstdlib"))
    yield os.path.dirname(os.path.abspath(__file__))
    # Not all of them: with -m the first is the working directory, which may be any.
    yield from (path for path in sys.path if os.path.basename(path) in PACKAGES)


def _removed_at_the_end() -> Iterator[Grant]:
    """The files of the sockets that are listened on, for clients, debuggers or another VMM."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # The one that lists them is among them, and gone.
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            with socket.socket(fileno=os.dup(fd)) as each:
                is_listening = each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                path = each.getsockname() if each.family == socket.AF_UNIX and is_listening else ""
            if path and isinstance(path, str):
                yield Grant(_directory(path), Right.REMOVE_FILE)


def _directory(path: str) -> str:
    return os.path.dirname(os.path.abspath(path))
