"""Taps: interfaces of the host whose packets a process reads and writes.

A tap has one queue a pair of the device's queues. Each packet carries the header of virtio-net, so
that checksums and segmentation pass through undone. A tap that was made here is gone as soon as its
queues are closed, also when this process is killed.

Source: Linux, Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from vmm.errors import ConfigError, HostError
from vmm.kvm_cffi.net import GONE_HINTS
from vmm.net import ioctls
from vmm.net.interface import Interface
from vmm.net.ioctls import TunFlag
from vmm.net.offload import HEADER_BYTES, Offload

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DEVICE = "/dev/net/tun"

ANY_NAME = "vmtap%d"
"""The kernel puts the first free number in."""

KIND = TunFlag.TAP | TunFlag.NO_PI | TunFlag.VNET_HDR


class Tap:
    """The open queues of one tap; they do not block, and are closed by who opened them."""

    def __init__(self, name: str, fds: Sequence[int]) -> None:
        self.name = name
        self.fds = tuple(fds)
        self._attached = len(self.fds)

    @property
    def interface(self) -> Interface:
        """The host's side."""
        return Interface(self.name)

    def set_offloads(self, offloads: Offload) -> None:
        """Say what the other end can do itself. Raises: HostError."""
        try:
            ioctls.call_with_value(self.fds[0], ioctls.TUNSETOFFLOAD, offloads)
        except OSError as error:
            hint = "turn offloads that its kernel does not have off (offload_tso, offload_ufo)"
            hint = GONE_HINTS.get(error.errno or 0, hint)
            raise HostError.from_os_error(
                "TUNSETOFFLOAD", error, path=self.name, hint=hint
            ) from error

    def use_queues(self, count: int) -> None:
        """Have the host put packets into the first queues only. Raises: HostError."""
        try:
            while self._attached < count:
                _set_queue(self.fds[self._attached], TunFlag.ATTACH_QUEUE)
                self._attached += 1
            while self._attached > count:
                _set_queue(self.fds[self._attached - 1], TunFlag.DETACH_QUEUE)
                self._attached -= 1
        except OSError as error:
            hint = GONE_HINTS.get(error.errno or 0)
            raise HostError.from_os_error(
                "TUNSETQUEUE", error, path=self.name, hint=hint
            ) from error


@contextmanager
def open_tap(name: str | None, queues: int) -> Iterator[Tap]:
    """Open a tap by name, or make it; without a name the kernel chooses one.

    Raises: ConfigError for a name that cannot be, or one that is no tap with as many queues
    (caller); HostError when it is in use, or may not be opened.
    """
    if name is not None:
        _check_name(name)
    with ExitStack() as stack:
        fds: list[int] = []
        actual = name or ANY_NAME
        for _ in range(queues):
            fd = _open_device()
            stack.callback(os.close, fd)
            actual = _attach(fd, actual, queues)
            fds.append(fd)
        _set_header(fds[0], actual)
        yield Tap(actual, fds)


@contextmanager
def adopt_tap(given: Sequence[int]) -> Iterator[Tap]:
    """Use queues of a tap that somebody else opened; the descriptors given stay open.

    Raises: ConfigError when one is no queue of a tap, or not of the same (caller); HostError.
    """
    names = {_identify(fd, len(given)) for fd in given}
    if len(names) != 1:
        raise ConfigError(
            f"fds (--net fd=…) are queues of {' and '.join(sorted(names))}; give those of one tap"
        )
    if len(set(given)) != len(given):
        raise ConfigError(f"fds (--net fd=…) has a descriptor twice: {list(given)}; give each once")
    (name,) = names
    with ExitStack() as stack:
        fds = []
        for number in given:
            fd = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 0)
            stack.callback(os.close, fd)
            os.set_blocking(fd, False)
            fds.append(fd)
            # A VMM that was killed may have left it out of use; one that is in use refuses this.
            with suppress(OSError):
                _set_queue(fd, TunFlag.ATTACH_QUEUE)
        _set_header(fds[0], name)
        tap = Tap(name, fds)
        try:
            yield tap
        finally:
            # They outlive this VM: whoever has them next finds them as they were.
            with suppress(HostError):
                tap.use_queues(len(fds))


def _check_name(name: str) -> None:
    place = f"tap (--net tap=…) is {name!r}"
    limit = ioctls.NAME_BYTES - 1
    if not 0 < len(name.encode()) <= limit:
        raise ConfigError(f"{place}; the name of an interface has 1 to {limit} bytes; change it")
    if name in (".", "..") or any(each in "/:%" or each.isspace() for each in name):
        raise ConfigError(
            f"{place}; the name of an interface has no '/', ':', '%' or space; change it"
        )


def _open_device() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        hints = {
            errno.ENOENT: "load the module tun (modprobe tun)",
            errno.ENODEV: "load the module tun (modprobe tun)",
        }
        hint = hints.get(error.errno or 0, f"give this user read and write access to {DEVICE}")
        raise HostError.from_os_error("open", error, path=DEVICE, hint=hint) from error


def _attach(fd: int, name: str, queues: int) -> str:
    """Make a descriptor a queue of a tap; the tap's name."""
    flags = KIND | (TunFlag.MULTI_QUEUE if queues > 1 else TunFlag(0))
    argument = ioctls.request(name, struct.pack("<H", flags))
    try:
        ioctls.call(fd, ioctls.TUNSETIFF, argument)
    except OSError as error:
        raise _refusal(name, queues, error) from error
    return ioctls.name_of(argument)


def _refusal(name: str, queues: int, error: OSError) -> ConfigError | HostError:
    """Why a tap could not be opened."""
    if error.errno == errno.EINVAL and (problem := _mismatch(name, queues)):
        return ConfigError(f"tap (--net tap=…) is {name}, {problem}")
    hints = {
        errno.EPERM: "run with CAP_NET_ADMIN, or use a tap made for this user "
        "(ip tuntap add mode tap user …)",
        errno.EBUSY: "another program has it open; stop that, or use another tap",
        errno.E2BIG: "it has as many queues as a tap can have; use another tap",
    }
    return HostError.from_os_error(
        "TUNSETIFF", error, path=name, hint=hints.get(error.errno or 0, "use another tap")
    )


def _mismatch(name: str, queues: int) -> str | None:
    """What is wrong with the interface that is there already; None when there is none."""
    interface = Interface(name)
    if not interface.exists():
        return None
    kind = interface.kind()
    if kind != "tap":
        what = f"whose driver is {kind}" if kind else "an interface of another kind"
        return f"{what}, not a tap; name a tap or a new interface"
    if queues > 1:
        return (
            f"a tap with one queue, but num_queues is {2 * queues}; make it with multi_queue "
            "(ip tuntap add mode tap multi_queue …), or set num_queues to 2"
        )
    return (
        "a tap with several queues, but num_queues is 2; make it without multi_queue, or raise "
        "num_queues"
    )


def _set_queue(fd: int, flag: TunFlag) -> None:
    ioctls.call(fd, ioctls.TUNSETQUEUE, ioctls.request("", struct.pack("<H", flag)))


def _set_header(fd: int, name: str) -> None:
    try:
        ioctls.call_with_int(fd, ioctls.TUNSETVNETHDRSZ, HEADER_BYTES)
    except OSError as error:
        raise HostError.from_os_error("TUNSETVNETHDRSZ", error, path=name) from error


def _identify(fd: int, queues: int) -> str:
    """The tap that a descriptor is a queue of. Raises: ConfigError (caller)."""
    place = f"fds (--net fd=…) has descriptor {fd}"
    argument = ioctls.request("")
    try:
        ioctls.call(fd, ioctls.TUNGETIFF, argument)
    except OSError as error:
        what = "which is not open" if error.errno == errno.EBADF else "which is no tap"
        raise ConfigError(f"{place}, {what}; pass an open queue of a tap") from error
    flags = TunFlag(ioctls.flags_of(argument))
    # IFF_NO_PI cannot be seen: another flag of an answer has its bit.
    if TunFlag.TAP | TunFlag.VNET_HDR not in flags:
        raise ConfigError(
            f"{place}, a queue of {ioctls.name_of(argument)} with flags {int(flags):#x}; open it "
            "with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR"
        )
    if queues > 1 and TunFlag.MULTI_QUEUE not in flags:
        raise ConfigError(
            f"{place}, a queue of {ioctls.name_of(argument)}, which has no more than one; open it "
            "with IFF_MULTI_QUEUE, or give one descriptor"
        )
    return ioctls.name_of(argument)
