"""VMs that cannot be: each for the command line and for the API, with the words of its refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.kvm.guests import programs
from tests.kvm.guests.assembler import assemble
from tests.kvm.guests.image import ENTRY, write_kernel
from tests.kvm.guests.processes import machine
from tests.unit.boot_images import make_elf
from vmm.boot.layout import CMDLINE_MAX_SIZE
from vmm.machine.supported import SECTIONS

MIB = 1 << 20


class Refusal(NamedTuple):
    """One VM that cannot be; ``words`` are parts of the message in the order they come."""

    arguments: tuple[str, ...]
    config: dict[str, object]
    status: int
    words: tuple[str, ...]


def _kernel(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def _of_kernel(path: Path, status: int, *words: str) -> Refusal:
    return Refusal(("--kernel", str(path)), machine(path), status, (str(path), *words))


def _no_kernel(folder: Path) -> Refusal:
    return _of_kernel(folder / "absent", 500, "No such file", "--kernel")


def _directory(folder: Path) -> Refusal:
    path = folder / "directory"
    path.mkdir(exist_ok=True)
    return _of_kernel(path, 500, "Is a directory", "--kernel")


def _empty(folder: Path) -> Refusal:
    return _of_kernel(_kernel(folder, "empty", b""), 400, "is empty", "use an ELF image")


def _no_image(folder: Path) -> Refusal:
    path = _kernel(folder, "text", b"#!/bin/sh\n" * 100)
    return _of_kernel(path, 400, "neither an ELF image nor a bzImage", "use a vmlinux")


def _no_note(folder: Path) -> Refusal:
    path = _kernel(folder, "bare", make_elf(notes=b""))
    return _of_kernel(path, 400, "lacks a PVH note", "CONFIG_PVH=y")


def _truncated(folder: Path) -> Refusal:
    whole = make_elf(assemble(programs.HALT, ENTRY) * 100)
    return _of_kernel(_kernel(folder, "cut", whole[:300]), 400, "ends at byte", "use an intact")


def _kernel_too_large(folder: Path) -> Refusal:
    path = _kernel(folder, "huge", make_elf(memsz=200 * MIB))
    return _of_kernel(path, 400, "202 MiB", "64 MiB", "raise memory.size")


def _initramfs_too_large(folder: Path) -> Refusal:
    kernel, initramfs = write_kernel(folder, programs.HALT), folder / "initramfs"
    with initramfs.open("wb") as file:
        file.truncate(100 * MIB)
    payload = {"kernel": str(kernel), "initramfs": str(initramfs)}
    arguments = ("--kernel", str(kernel), "--initramfs", str(initramfs))
    words = (str(initramfs), f"{100 * MIB} bytes", "64 MiB", "raise memory.size")
    return Refusal(arguments, machine(kernel, payload=payload), 400, words)


def _command_line_too_long(folder: Path) -> Refusal:
    kernel, line = write_kernel(folder, programs.HALT), "x" * CMDLINE_MAX_SIZE
    payload = {"kernel": str(kernel), "cmdline": line}
    words = (f"{CMDLINE_MAX_SIZE} bytes", f"{CMDLINE_MAX_SIZE - 1} is the limit", "shorten it")
    arguments = ("--kernel", str(kernel), "--cmdline", line)
    return Refusal(arguments, machine(kernel, payload=payload), 400, words)


def _cpus(folder: Path, option: str, cpus: dict[str, object], *words: str) -> Refusal:
    kernel = write_kernel(folder, programs.HALT)
    given = {"boot_vcpus": 1, "max_vcpus": 1, **cpus}
    arguments = ("--kernel", str(kernel), "--cpus", option)
    return Refusal(arguments, machine(kernel, cpus=given), 400, words)


def _too_many_vcpus(folder: Path) -> Refusal:
    cpus: dict[str, object] = {"boot_vcpus": 8192, "max_vcpus": 8192}
    return _cpus(folder, "boot=8192", cpus, "max_vcpus", "8192", "use at most")


def _bad_affinity(folder: Path) -> Refusal:
    cpus: dict[str, object] = {"affinity": [{"vcpu": 0, "host_cpus": [60000]}]}
    return _cpus(folder, "boot=1,affinity=[0@[60000]]", cpus, "[60000]", "name some")


def _amx(folder: Path) -> Refusal:
    return _cpus(folder, "boot=1,features=amx", {"features": {"amx": True}}, "features", "amx")


def _huge_pages(folder: Path) -> Refusal:
    kernel = write_kernel(folder, programs.HALT)
    option = "size=64M,hugepages=on,hugepage_size=16M"
    memory = {"size": 64 * MIB, "hugepages": True, "hugepage_size": 16 * MIB}
    arguments = ("--kernel", str(kernel), "--memory", option)
    return Refusal(arguments, machine(kernel, memory=memory), 500, ("mem0", "16384 KiB"))


def _net(folder: Path, option: str, net: dict[str, object], *words: str) -> Refusal:
    kernel = write_kernel(folder, programs.HALT)
    arguments = ("--kernel", str(kernel), "--net", option)
    return Refusal(arguments, machine(kernel, net=[net]), 400, words)


def _group_mac(folder: Path) -> Refusal:
    mac = "03:00:00:00:00:02"
    words = ("mac (--net mac=…)", mac, "group of stations", "must be even")
    return _net(folder, f"mac={mac}", {"mac": mac}, *words)


def _no_mask(folder: Path) -> Refusal:
    net: dict[str, object] = {"ip": "10.0.0.1", "mask": "255.0.255.0"}
    words = ("mask (--net mask=…)", "255.0.255.0", "10.0.0.1", "give one such as")
    return _net(folder, "ip=10.0.0.1,mask=255.0.255.0", net, *words)


def _no_interface_name(folder: Path) -> Refusal:
    words = ("tap (--net tap=…)", "a-name-of-20-letters", "1 to 15 bytes", "change it")
    return _net(folder, "tap=a-name-of-20-letters", {"tap": "a-name-of-20-letters"}, *words)


REFUSALS: dict[str, Callable[[Path], Refusal]] = {
    "no kernel": _no_kernel,
    "a directory": _directory,
    "an empty kernel": _empty,
    "a kernel that is text": _no_image,
    "a kernel without PVH note": _no_note,
    "a truncated kernel": _truncated,
    "a kernel too large": _kernel_too_large,
    "an initramfs too large": _initramfs_too_large,
    "a command line too long": _command_line_too_long,
    "too many vCPUs": _too_many_vcpus,
    "a host CPU that is not there": _bad_affinity,
    "AMX without AMX": _amx,
    "huge pages that are not there": _huge_pages,
    "a MAC address of a group": _group_mac,
    "a mask that is none": _no_mask,
    "a tap of a name too long": _no_interface_name,
}

_SECTIONS: dict[str, tuple[tuple[str, ...], object]] = {
    "fs": (("tag=t,socket=/s",), [{"tag": "t", "socket": "/s"}]),
    "generic_vhost_user": (
        ("socket=/s,device_type=26,queue_sizes=[64]",),
        [{"socket": "/s", "device_type": 26, "queue_sizes": [64]}],
    ),
    "devices": (("path=/sys/d",), [{"path": "/sys/d"}]),
    "user_devices": (("socket=/s",), [{"socket": "/s"}]),
    "vdpa": (("path=/d",), [{"path": "/d", "num_queues": 1}]),
    "numa": (("guest_numa_id=0,cpus=[0]",), [{"guest_numa_id": 0, "cpus": [0]}]),
    "tpm": (("socket=/s",), {"socket": "/s"}),
}


def absent_sections(folder: Path) -> dict[str, Refusal]:
    """One VM for each section whose device this version does not have."""
    kernel = write_kernel(folder, programs.HALT)
    found = {}
    for name in SECTIONS:
        options, section = _SECTIONS[name]
        arguments = ("--kernel", str(kernel), SECTIONS[name], *options)
        words = (name, "is not in this version of the VMM", "leave it out")
        memory = {"size": 64 * MIB, "shared": True}
        config = machine(kernel, memory=memory, **{name: section})
        found[name] = Refusal(arguments, config, 501, words)
    return found


def check_words(text: str, words: tuple[str, ...]) -> None:
    """Check that a message has all the words, in order. Raises: AssertionError."""
    at = 0
    for word in words:
        found = text.find(word, at)
        assert found >= 0, f"no {word!r} after character {at} of: {text}"
        at = found
