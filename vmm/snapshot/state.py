"""The state of a whole machine, and the tree of JSON it is kept in.

A node is ``{"snapshots": {name: node}, "snapshot_data": {"state": text}}``, and the text is the
JSON of one part's state: the tree that Cloud Hypervisor writes, with parts of this program's own.

- the root: clock
- ``cpu-manager``: processors; a child a vCPU, by its number
- ``memory-manager``: layout of RAM
- ``device-manager``: a child a device of the board, and a child a PCI function with its own below
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from vmm.acpi.saved import SavedCpuHotplug, SavedGed, SavedMemoryHotplug, SavedPciHotplug
from vmm.errors import ConfigError
from vmm.legacy.saved import SavedCmos, SavedIoapic, SavedIvshmem, SavedPvpanic, SavedUart
from vmm.machine.saved import (
    SavedClock,
    SavedLines,
    SavedMemory,
    SavedPorts,
    SavedProcessors,
    SavedVcpu,
)
from vmm.pci.saved import SavedConfiguration, SavedMsix, SavedPlace
from vmm.saved import SavedState
from vmm.virtio.saved import SavedMem, SavedPmem, SavedTransport, own_state

S = TypeVar("S", bound=SavedState)

CPUS: Final = "cpu-manager"
MEMORY: Final = "memory-manager"
DEVICES: Final = "device-manager"

BOARD: Final[Mapping[str, type[SavedState]]] = {
    "__ioapic": SavedIoapic,
    "__lines": SavedLines,
    "__cmos": SavedCmos,
    "__ports": SavedPorts,
    "__serial": SavedUart,
    "__host_bridge": SavedConfiguration,
    "__ged": SavedGed,
    "__pci_hotplug": SavedPciHotplug,
    "__cpu_hotplug": SavedCpuHotplug,
    "__memory_hotplug": SavedMemoryHotplug,
}
"""The parts of the board; a serial port and memory hot plug only where the VM has them."""

PLACE, CONFIGURATION, MSIX, TRANSPORT, OWN = (
    "place",
    "pci-configuration",
    "msix",
    "virtio-pci-common",
    "device",
)
REGISTERS: Final[Mapping[str, type[SavedState]]] = {"__ivshmem": SavedIvshmem}
"""What is kept of functions that are no virtio devices, beside that of pvpanic."""
FUNCTION: Final = "_function-"
"""How the names of PCI functions begin, beside those of the board's parts."""


class SavedDevice(NamedTuple):
    """A PCI device: where it is, and what it and its transport keep."""

    place: SavedPlace
    configuration: SavedConfiguration
    own: SavedState
    msix: SavedMsix | None = None
    transport: SavedTransport | None = None


class MachineState(NamedTuple):
    """All that a machine is made of again, but for the content of its RAM."""

    clock: SavedClock
    processors: SavedProcessors
    vcpus: Mapping[int, SavedVcpu]
    memory: SavedMemory
    board: Mapping[str, SavedState]
    devices: Mapping[str, SavedDevice]

    @property
    def places(self) -> dict[str, int]:
        """Where the guest has the memory of devices, by their names."""
        owns = ((name, device.own) for name, device in self.devices.items())
        return {name: own.start for name, own in owns if isinstance(own, SavedPmem)}

    @property
    def plugged(self) -> dict[str, Sequence[tuple[int, int]]]:
        """Which blocks the guest has of the rooms in which zones grow, by the zones' names."""
        owns = ((name, device.own) for name, device in self.devices.items())
        return {name: own.plugged for name, own in owns if isinstance(own, SavedMem)}

    def to_json(self) -> str:
        """Write the tree."""
        return json.dumps(self._tree(), separators=(",", ":"))

    def _tree(self) -> dict[str, object]:
        vcpus = {str(index): _node(state) for index, state in self.vcpus.items()}
        devices = {name: _node(state) for name, state in self.board.items()}
        devices |= {FUNCTION + name: _device_node(each) for name, each in self.devices.items()}
        return _node(
            self.clock,
            {
                CPUS: _node(self.processors, vcpus),
                MEMORY: _node(self.memory),
                DEVICES: _node(None, devices),
            },
        )

    @classmethod
    def from_json(cls, text: str) -> MachineState:
        """Read the tree. Raises: ConfigError when it is not whole, or not of this version."""
        root = _Node.of_text(text)
        cpus, devices = root.child(CPUS), root.child(DEVICES)
        board, functions = {}, {}
        for node in devices.children():
            if node.name.startswith(FUNCTION):
                functions[node.name.removeprefix(FUNCTION)] = _device_of(node)
            elif node.name in BOARD:
                board[node.name] = node.read(BOARD[node.name])
            else:
                raise ConfigError(
                    f"The saved machine has a {node.name}, which this program does not know; "
                    "restore it with the program that wrote it"
                )
        return cls(
            root.read(SavedClock),
            cpus.read(SavedProcessors),
            {_number(node): node.read(SavedVcpu) for node in cpus.children()},
            root.child(MEMORY).read(SavedMemory),
            board,
            functions,
        )


class _Node:
    """A node of a tree that was read: nothing in it is trusted."""

    def __init__(self, name: str, content: object) -> None:
        if not isinstance(content, dict) or not isinstance(content.get("snapshots", {}), dict):
            raise ConfigError(f"The saved state has no node {name}: the file is not whole")
        self.name = name
        self._content: dict[str, Any] = content

    @classmethod
    def of_text(cls, text: str) -> _Node:
        """The root of a file. Raises: ConfigError when it is no JSON (caller)."""
        try:
            return cls("vm", json.loads(text))
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"The saved state is not JSON: {error}; the file is not whole"
            ) from None

    def child(self, name: str) -> _Node:
        return _Node(name, self._content.get("snapshots", {}).get(name))

    def children(self) -> Iterator[_Node]:
        for name in self._content.get("snapshots", {}):
            yield self.child(name)

    def has(self, name: str) -> bool:
        return name in self._content.get("snapshots", {})

    def read(self, model: type[S]) -> S:
        """The state of the node. Raises: ConfigError (caller)."""
        data = self._content.get("snapshot_data")
        text = data.get("state") if isinstance(data, dict) else None
        if not isinstance(text, str):
            raise ConfigError(f"The saved state has none of {self.name}: the file is not whole")
        return model.from_json(text, self.name)


def _node(
    state: SavedState | None, children: Mapping[str, dict[str, object]] | None = None
) -> dict[str, object]:
    data = None if state is None else {"state": state.to_json()}
    return {"snapshots": dict(children or {}), "snapshot_data": data}


def _device_node(device: SavedDevice) -> dict[str, object]:
    parts: dict[str, SavedState | None] = {
        PLACE: device.place,
        CONFIGURATION: device.configuration,
        MSIX: device.msix,
        TRANSPORT: device.transport,
        OWN: device.own,
    }
    return _node(None, {name: _node(part) for name, part in parts.items() if part is not None})


def _device_of(node: _Node) -> SavedDevice:
    msix = transport = None
    own = REGISTERS.get(node.name.removeprefix(FUNCTION), SavedPvpanic)
    if node.has(TRANSPORT):
        transport = node.child(TRANSPORT).read(SavedTransport)
        msix = node.child(MSIX).read(SavedMsix)
        own = own_state(transport.device_id)
    return SavedDevice(
        node.child(PLACE).read(SavedPlace),
        node.child(CONFIGURATION).read(SavedConfiguration),
        node.child(OWN).read(own),
        msix,
        transport,
    )


def _number(node: _Node) -> int:
    name = node.name
    if not (name.isascii() and name.isdigit() and len(name) <= 5 and str(int(name)) == name):
        raise ConfigError(
            f"The saved state names a vCPU {name[:20]!r}; it must be a number of at most 5 digits"
        )
    return int(name)
