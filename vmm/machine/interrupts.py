"""Interrupt routes: which message each GSI stands for, and the event descriptors that raise them.

The irqchip is split: LAPICs are in the kernel, and every GSI, the 24 IOAPIC pins included, is a
message-signalled interrupt whose address and data are kept here. An event written to an irqfd
whose pin is masked stays in the descriptor and is delivered when the pin is unmasked.
"""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

from vmm.boot import layout
from vmm.errors import ConfigError, InternalError
from vmm.kvm_cffi import constants
from vmm.kvm_cffi.event import open_event
from vmm.kvm_cffi.structs import MsiRoute

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from vmm.kvm_cffi import Vm
    from vmm.machine.saved import SavedLines
    from vmm.pci.msix import Message

IOAPIC_PINS = 24
GSI_LIMIT = 4096
"""KVM's routing table has this many entries (KVM_MAX_IRQ_ROUTES)."""


def split_irqchip(vm: Vm) -> None:
    """Split the interrupt controller: LAPICs in the kernel, the IOAPIC here. Raises: HostError."""
    vm.set_tss_addr(layout.KVM_TSS)
    vm.set_identity_map_addr(layout.KVM_IDENTITY_MAP)
    vm.enable_cap(constants.KVM_CAP_SPLIT_IRQCHIP, IOAPIC_PINS)
    ids = constants.KVM_X2APIC_API_USE_32BIT_IDS | constants.KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK
    vm.enable_cap(constants.KVM_CAP_X2APIC_API, ids)


EXTENDED_DESTINATION = 0x7F << 5
EXTENDED_DESTINATION_SHIFT = 35


def to_kvm_address(address: int) -> int:
    """Put the upper bits of a message's destination where KVM looks for them.

    A guest that knows KVM_FEATURE_MSI_EXT_DEST_ID writes bits 8 to 14 of an APIC id to bits 5 to 11
    of the address; KVM, with 32-bit ids, takes them from bit 40 on.
    Source: Linux Documentation/virt/kvm/x86/cpuid.rst and api.rst, KVM_CAP_X2APIC_API.
    """
    extended = address & EXTENDED_DESTINATION
    return address & ~EXTENDED_DESTINATION | extended << EXTENDED_DESTINATION_SHIFT


class InterruptLine:
    """One edge-triggered line into the IOAPIC: writing its event descriptor raises it."""

    def __init__(self, pin: int) -> None:
        self.pin = pin
        self.fd = open_event()

    def raise_edge(self) -> None:
        """Send one interrupt."""
        os.eventfd_write(self.fd, 1)


class Interrupts:
    """The routing table of one VM and the lines that lead into it.

    A context manager: leaving it closes the lines. ``set_route``, ``mask`` and ``unmask`` are what
    a write to one of the IOAPIC's redirection entries means. GSIs from 24 on are given out to the
    vectors of PCI functions.
    """

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._routes: dict[int, MsiRoute] = {}
        self._lines: dict[int, InterruptLine] = {}
        self._attached: set[int] = set()
        self._vectors: set[int] = set()

    def __enter__(self) -> Interrupts:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            for pin in list(self._attached):
                self.mask(pin)
        finally:  # A VM that KVM has given up refuses everything.
            for line in self._lines.values():
                os.close(line.fd)
            self._lines.clear()

    def line(self, pin: int) -> InterruptLine:
        """Make the line of an IOAPIC pin; a pin has one.

        Raises: InternalError on a second, HostError.
        """
        if pin in self._lines or not 0 <= pin < IOAPIC_PINS:
            raise InternalError(f"IOAPIC pin {pin} is taken or does not exist")
        return self._lines.setdefault(pin, InterruptLine(pin))

    def set_route(self, pin: int, address: int, data: int) -> None:
        """Let a GSI stand for a message. Raises: HostError."""
        self._set_routes([MsiRoute(pin, to_kvm_address(address), data)])

    def set_messages(self, messages: Mapping[int, Message]) -> None:
        """Let several GSIs stand for messages, in one change of the table. Raises: HostError."""
        self._set_routes(
            [
                MsiRoute(gsi, to_kvm_address(message.address), message.data)
                for gsi, message in messages.items()
            ]
        )

    def _set_routes(self, routes: list[MsiRoute]) -> None:
        changed = {route.gsi: route for route in routes if self._routes.get(route.gsi) != route}
        if changed:
            self._routes |= changed
            self._vm.set_gsi_routing(list(self._routes.values()))

    def save(self) -> SavedLines:
        """Give what a snapshot keeps: the lines that wait in their descriptors."""
        from vmm.machine.saved import SavedLines  # Only now: most VMs never are.

        poll = select.poll()
        pins = {line.fd: pin for pin, line in self._lines.items() if pin not in self._attached}
        for fd in pins:
            poll.register(fd, select.POLLIN)
        return SavedLines(pending=tuple(sorted(pins[fd] for fd, _ in poll.poll(0))))

    def load(self, state: SavedLines) -> None:
        """Raise the lines that waited. Raises: ConfigError for a pin without a line (caller)."""
        unknown = set(state.pending) - self._lines.keys()
        if unknown:
            raise ConfigError(f"The saved IOAPIC pins {sorted(unknown)} have no line in this VM")
        for pin in state.pending:
            self._lines[pin].raise_edge()

    def allocate_gsi(self) -> int:
        """Take the lowest free GSI above the IOAPIC's. Raises: ConfigError when there is none."""
        for gsi in range(IOAPIC_PINS, GSI_LIMIT):
            if gsi not in self._vectors:
                self._vectors.add(gsi)
                return gsi
        raise ConfigError(
            f"All {GSI_LIMIT - IOAPIC_PINS} interrupt routes are taken; use fewer devices or queues"
        )

    def free_gsi(self, gsi: int) -> None:
        """Give a GSI back; nothing may be attached to it any more."""
        self._vectors.remove(gsi)
        self._routes.pop(gsi, None)

    def attach(self, fd: int, gsi: int) -> None:
        """Let an event descriptor raise a GSI; KVM delivers at once what it holds already.

        Raises: HostError.
        """
        self._vm.irqfd(fd, gsi)

    def detach(self, fd: int, gsi: int) -> None:
        """Keep later events in their descriptor. Raises: HostError."""
        self._vm.irqfd(fd, gsi, assign=False)

    def mask(self, pin: int) -> None:
        """Hold back the line of a pin; what arrives meanwhile is kept in its descriptor."""
        if pin in self._attached:
            self._attached.remove(pin)
            self._vm.irqfd(self._lines[pin].fd, pin, assign=False)

    def unmask(self, pin: int) -> None:
        """Let the line of a pin through; KVM delivers at once what was kept. Raises: HostError."""
        if pin in self._lines and pin not in self._attached:
            self._vm.irqfd(self._lines[pin].fd, pin)
            self._attached.add(pin)
