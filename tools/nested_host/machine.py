"""The machine the nested host is: QEMU's command line, and the key its saved state depends on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.images.cache import cache_dir
from tools.images.kernels import Kernel, kernel
from tools.images.qemu import Qemu, emulator
from tools.nested_host.root_image import RootImage, root_image

CPUS: Final = 2
MEMORY_MIB: Final = 6144  # room for a guest of 3.5 GiB; pages nobody touched cost the host nothing
ROOT_PORTS: Final = 6
# An oops under emulation leaves a kernel nobody should trust: it panics, and QEMU ends.
KERNEL_COMMAND_LINE: Final = (
    "console=ttyS0 quiet oops=panic panic=-1 mitigations=off cryptomgr.notests "
    "random.trust_cpu=on tsc=reliable no_timer_check nokaslr"
)
STATE_VERSION: Final = 1


@dataclass(frozen=True)
class Machine:
    """A QEMU, a kernel and a root image, put together."""

    qemu: Qemu
    kernel: Kernel
    image: RootImage

    def arguments(self) -> list[str]:
        """Return what defines the machine; a saved state fits these arguments alone."""
        memory = f"memory-backend-memfd,id=ram,size={MEMORY_MIB}M,share=on"
        ports = [
            word
            for index in range(1, ROOT_PORTS + 1)
            for word in ("-device", f"pcie-root-port,id=rp{index},slot={index},chassis={index}")
        ]
        return [
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-machine", "q35,memory-backend=ram", "-accel", "tcg,thread=multi",
            "-cpu", "max,+svm,+npt", "-smp", str(CPUS), "-m", f"{MEMORY_MIB}M", "-object", memory,
            "-kernel", str(self.kernel.vmlinux), "-initrd", str(self.image.initramfs),
            "-append", KERNEL_COMMAND_LINE,
            "-drive", f"if=none,id=root,format=raw,read-only=on,file={self.image.image}",
            "-device", "virtio-blk-pci,drive=root",
            "-device", "virtio-rng-pci",
            "-device", "virtio-serial-pci",
            "-device", "virtserialport,chardev=agent,name=nested-host",
            *ports,
        ]  # fmt: skip

    def command(self, serial_log: Path, agent_fd: int, monitor_fd: int) -> list[str]:
        """Return QEMU's whole command line; the descriptors are connected sockets."""
        return [
            *self.qemu.command, *self.arguments(),
            "-chardev", f"socket,id=agent,fd={agent_fd}",
            "-chardev", f"socket,id=monitor,fd={monitor_fd}",
            "-mon", "chardev=monitor,mode=control",
            "-serial", f"file:{serial_log}",
        ]  # fmt: skip

    @property
    def key(self) -> str:
        """Name everything a saved state depends on."""
        facts = (STATE_VERSION, self.qemu.version, self.kernel.version, self.image.key)
        return hashlib.sha256(repr((facts, self.arguments())).encode()).hexdigest()[:16]

    @property
    def state_file(self) -> Path:
        """Return where the saved state of this machine is, or will be."""
        return cache_dir() / "nested-host" / "states" / self.key / "state"


def machine() -> Machine:
    """Return the machine, fetching and making its parts where the cache lacks them.

    Raises: NestedHostError or ImageError: a part could not be had (host).
    """
    stock = kernel("6.12-cloud")
    return Machine(emulator(), stock, root_image(stock))
