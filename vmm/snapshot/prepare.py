"""Having at hand what a restore needs, before one is asked for.

To import it and to build its models takes longer than the restore itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pydantic import BaseModel

MODULES: Final = (
    "vmm.saved",
    "vmm.acpi.saved",
    "vmm.legacy.saved",
    "vmm.pci.saved",
    "vmm.virtio.saved",
    "vmm.machine.saved",
    "vmm.machine.vcpu_state",
    "vmm.snapshot.state",
    "vmm.machine.board_state",
    "vmm.machine.device_state",
    "vmm.machine.brought_back",
    "vmm.config.requests",
    "vmm.snapshot.restore",
    "vmm.kvm_cffi.pager",
    "vmm.machine.disks",
    "vmm.machine.nets",
)
"""In the order in which they need each other, so that each step is short."""


def prepare() -> Iterator[None]:
    """Do it in steps of a few milliseconds."""
    for name in MODULES:
        import_module(name)
        yield
    from vmm.config.requests import RestoreConfig
    from vmm.config.vm import VmConfig
    from vmm.saved import SavedState

    models: list[type[BaseModel]] = [RestoreConfig, VmConfig, *SavedState.__subclasses__()]
    for model in models:
        model.model_rebuild()
        yield
