"""What a snapshot keeps of a PCI device, with its transport; and making a device that again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.errors import ConfigError, InternalError
from vmm.legacy.ivshmem import Ivshmem
from vmm.legacy.pvpanic import Pvpanic
from vmm.legacy.saved import SavedIvshmem, SavedPvpanic
from vmm.pci.saved import SavedPlace
from vmm.snapshot.state import SavedDevice
from vmm.virtio.device import VirtioDevice
from vmm.virtio.saved import own_state

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm.machine.pci_bus import BarWindow
    from vmm.machine.plug import Plugged
    from vmm.machine.sections import RegisterFunction
    from vmm.pci.bar import Bar
    from vmm.virtio.pci_transport import VirtioPci


def save_device(plugged: Plugged) -> SavedDevice:
    """Read a device that sleeps."""
    device, transport = plugged.device, plugged.transport
    if transport is not None:
        place = _place(plugged, transport.bar)
        state, msix = transport.save()
        own = own_state(state.device_id)(**transport.device.save())
        return SavedDevice(place, transport.configuration.save(), own, msix, state)
    if isinstance(device, VirtioDevice):
        raise InternalError(f"{device.id} is on the bus without a transport")
    place = _place(plugged, device.bar)
    return SavedDevice(place, device.configuration.save(), device.save())


def _place(plugged: Plugged, bar: Bar) -> SavedPlace:
    return SavedPlace(
        segment=plugged.bdf.segment,
        slot=plugged.bdf.device,
        bar_kind=bar.kind.name,
        bar_address=plugged.window.address,
        memory_address=None if plugged.memory_window is None else plugged.memory_window.address,
    )


def load_virtio(transport: VirtioPci, state: SavedDevice) -> None:
    """Make a virtio device what it was; it sleeps. Raises: ConfigError (caller), HostError."""
    device = transport.device
    if state.transport is None or state.msix is None:
        raise ConfigError(f"The saved {device.id} is no virtio device, and here it is")
    if state.transport.device_id != device.DEVICE_ID:
        raise ConfigError(
            f"The saved {device.id} is of type {state.transport.device_id} and the device here of "
            f"type {device.DEVICE_ID:d}; restore it with its own config.json"
        )
    device.load(state.own.model_dump())
    try:
        transport.load(state.transport, state.msix, state.configuration)
    except ConfigError as error:
        raise ConfigError(f"Device {device.id} cannot be what it was: {error}") from error


def load_registers(
    device: RegisterFunction, windows: Mapping[Bar, BarWindow], state: SavedDevice
) -> None:
    """Make a function of registers what it was. Raises: ConfigError (caller)."""
    try:
        device.configuration.load(state.configuration)
    except ConfigError as error:
        raise ConfigError(f"Device {device.id} cannot be what it was: {error}") from error
    for bar, window in windows.items():
        window.move(bar.address)
    if isinstance(device, Pvpanic) and isinstance(state.own, SavedPvpanic):
        device.load(state.own)
    if isinstance(device, Ivshmem) and isinstance(state.own, SavedIvshmem):
        device.load(state.own)
