"""The host bridge: a function without BARs that tells an operating system there is a bus.

Spec: PCI Local Bus 3.0, appendix D (class 06/00).
"""

from __future__ import annotations

from vmm.pci.configuration import Configuration, Identity

IDENTITY = Identity(vendor=0x8086, device=0x0D57, class_code=0x06, subclass=0x00)


class HostBridge:
    """What segment 0 has in slot 0."""

    def __init__(self) -> None:
        self.configuration = Configuration(IDENTITY)

    def write_configuration(self, offset: int, size: int, value: int) -> None:
        """Keep what can be written; nothing follows from it."""
        self.configuration.write(offset, size, value)
