"""What is at hand before it is asked for: code, and the models of a machine's state.

To import it and to build its models takes longer than a restore itself, and a VM that stands while
it moves must not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pydantic import BaseModel

STATE: Final = (
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
)
"""What knows a machine's state, in the order in which they need each other: each step is short."""

SAVING: Final = (*STATE, "vmm.machine.saving")
RESTORING: Final = (
    *STATE,
    "vmm.config.requests",
    "vmm.snapshot.restore",
    "vmm.kvm_cffi.pager",
    "vmm.machine.disks",
    "vmm.machine.nets",
)
ARRIVING: Final = (
    *STATE,
    "vmm.machine.disks",
    "vmm.machine.ivshmems",
    "vmm.machine.nets",
    "vmm.machine.pmems",
    "vmm.machine.vsocks",
    "vmm.machine.virtual_machine",
)
"""With what is imported only by machines that have such devices."""


def prepare_to_restore() -> Iterator[None]:
    """Make ready what a restore needs, in steps of a few milliseconds."""
    yield from _imported(RESTORING)
    from vmm.config.requests import RestoreConfig
    from vmm.config.vm import VmConfig

    yield from _built(RestoreConfig, VmConfig, *_states())


def prepare_to_save() -> None:
    """Make ready what a source needs once its VM stands. To be called in a thread."""
    _prepare(SAVING)


def prepare_to_arrive() -> None:
    """Make ready what a destination needs once the state is there. To be called in a thread."""
    _prepare(ARRIVING)


def _prepare(modules: tuple[str, ...]) -> None:
    for _ in (*_imported(modules), *_built(*_states())):
        pass


def _imported(modules: tuple[str, ...]) -> Iterator[None]:
    for name in modules:
        import_module(name)
        yield


def _built(*models: type[BaseModel]) -> Iterator[None]:
    for model in models:
        model.model_rebuild()
        yield


def _states() -> Iterator[type[BaseModel]]:
    """All models of states, also those of a base of their own."""
    from vmm.saved import SavedState

    bases: list[type[SavedState]] = [SavedState]
    while bases:
        models = bases.pop().__subclasses__()
        yield from models
        bases += models
