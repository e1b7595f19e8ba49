"""What a VM that stands must not wait for: code, and the models of its state, made ready before."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from vmm.saved import SavedState

SAVING = (
    "vmm.machine.saving",
    "vmm.machine.board_state",
    "vmm.machine.device_state",
    "vmm.machine.vcpu_state",
    "vmm.machine.brought_back",
    "vmm.snapshot.state",
    "vmm.virtio.saved",
)
"""What reads a machine's state, and writes it down."""

BUILDING = (
    "vmm.machine.disks",
    "vmm.machine.ivshmems",
    "vmm.machine.nets",
    "vmm.machine.pmems",
    "vmm.machine.vsocks",
    "vmm.machine.virtual_machine",
)
"""What is imported only by machines that have such devices."""


def prepare_to_save() -> None:
    """Make ready what the source needs once its VM stands. To be called in a thread."""
    _prepare(SAVING)


def prepare_to_build() -> None:
    """Make ready what the destination needs once the state is there. To be called in a thread."""
    _prepare(SAVING + BUILDING)


def _prepare(modules: tuple[str, ...]) -> None:
    for name in modules:
        import_module(name)
    for model in _models(SavedState):
        model.model_rebuild()


def _models(base: type[SavedState]) -> Iterator[type[SavedState]]:
    for model in base.__subclasses__():
        yield model
        yield from _models(model)
