"""ivshmem: memory that a guest shares with other guests and with programs of the host.

A PCI function of the plain kind: the memory is all there is, nobody rings and nobody is rung.
BAR 0: 256 bytes of registers, which are for interrupts; without those each reads as zero, and what
is written to it has no effect. BAR 2: the memory.
Snapshot: the size of the memory, to be compared; what is in it is the file's.
Spec: QEMU docs/specs/ivshmem-spec.rst, "Device Specification".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmm.errors import ConfigError
from vmm.pci.bar import Bar, BarKind, MemoryBar
from vmm.pci.configuration import Configuration, Identity

if TYPE_CHECKING:
    from vmm.legacy.saved import SavedIvshmem

IDENTITY: Final = Identity(vendor=0x1AF4, device=0x1110, class_code=0x05, subclass=0x00, revision=1)
REGISTERS_SIZE: Final = 256
REGISTERS_BAR, MEMORY_BAR = 0, 2


class Ivshmem:
    """The function and the IoHandler of its registers; ``memory`` is what the guest shares."""

    def __init__(self, id: str, memory: memoryview) -> None:
        self.id = id
        self.configuration = Configuration(IDENTITY)
        self.bar = Bar(REGISTERS_BAR, BarKind.MEMORY32, REGISTERS_SIZE)
        bar = Bar(MEMORY_BAR, BarKind.MEMORY64, len(memory), is_prefetchable=True)
        self.memory = MemoryBar(bar, memory)

    def read(self, offset: int, size: int) -> int:
        """Nothing is masked, nothing is pending, and there are no peers to be told from."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Drop it: there are no interrupts."""

    def save(self) -> SavedIvshmem:
        """Give what a snapshot keeps."""
        from vmm.legacy.saved import SavedIvshmem  # Only now: most VMs never are.

        return SavedIvshmem(size=self.memory.bar.size)

    def load(self, state: SavedIvshmem) -> None:
        """Check that it is what it was. Raises: ConfigError (caller)."""
        if state.size != self.memory.bar.size:
            raise ConfigError(
                f"The saved shared memory has {state.size} bytes and ivshmem.size (--ivshmem "
                f"size=) says {self.memory.bar.size}; give it the size that it had"
            )
