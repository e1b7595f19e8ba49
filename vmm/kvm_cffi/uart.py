"""The 16550A serial port whose registers live in C.

Map it at its port base with size 8. Source: National Semiconductor PC16550D data sheet, section 8.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from vmm.errors import ConfigError, InternalError
from vmm.kvm_cffi._kvm import ffi, lib
from vmm.kvm_cffi.closing import Closing
from vmm.kvm_cffi.event import open_events
from vmm.kvm_cffi.mechanisms import Mechanism, allocated

FIFO_DEPTH = 16
RECEIVE_CAPACITY = 256
REGISTERS = ("ier", "lcr", "mcr", "lsr", "msr", "scr", "dll", "dlm", "fcr", "thre_pending")


class UartState(NamedTuple):
    """Everything a UART holds: registers, THRE interrupt pending, and the two queues."""

    ier: int
    lcr: int
    mcr: int
    lsr: int
    msr: int
    scr: int
    dll: int
    dlm: int
    fcr: int
    thre_pending: int
    transmit: bytes
    receive: bytes


class Uart(Mechanism, Closing):
    """A 16550A; a context manager that closes its two descriptors.

    ``irq_fd`` is an eventfd of the caller's: one signal an interrupt edge. ``fd`` becomes readable
    when output waits, ``room_fd`` when input that ``receive`` refused would be taken again; clear
    them, then act. When output is not drained, the guest sees a busy transmitter.
    """

    def __init__(self, irq_fd: int, *, transmit_capacity: int = 65536) -> None:
        if transmit_capacity < 2 * FIFO_DEPTH:
            raise InternalError(
                f"A transmit queue of {transmit_capacity} bytes is too short for a FIFO of "
                f"{FIFO_DEPTH}; give it {2 * FIFO_DEPTH} or more"
            )
        self.fd, self.room_fd = open_events(2)
        self._capacity = transmit_capacity
        made = lib.vk_uart_new(transmit_capacity, RECEIVE_CAPACITY, irq_fd, self.fd, self.room_fd)
        self._uart = ffi.gc(allocated(made), lib.vk_uart_free)
        super().__init__(self._uart)

    def close(self) -> None:
        """Close the descriptors and forget ``irq_fd``; output can still be drained."""
        fds, self.fd, self.room_fd = (self.fd, self.room_fd), -1, -1
        lib.vk_uart_detach(self._uart)
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def drain(self) -> bytes:
        """Take all output there is; a transmitter that was busy becomes empty."""
        room = ffi.new("uint8_t[]", self._capacity)
        count = lib.vk_uart_drain(self._uart, room, self._capacity)
        return bytes(ffi.buffer(room, count))

    def receive(self, data: bytes) -> int:
        """Feed input; return how many bytes were taken (``room_fd`` tells of the rest)."""
        return int(lib.vk_uart_receive(self._uart, data, len(data)))

    @property
    def dropped(self) -> int:
        """How many bytes the guest wrote to a busy transmitter, and lost."""
        return int(lib.vk_uart_dropped(self._uart))

    def save(self) -> UartState:
        """Return the whole state; output not yet drained is part of it."""
        state = ffi.new("struct vk_uart_state *")
        transmit = ffi.new("uint8_t[]", self._capacity)
        receive = ffi.new("uint8_t[]", RECEIVE_CAPACITY)
        transmit_count = ffi.new("uint32_t *", self._capacity)
        receive_count = ffi.new("uint32_t *", RECEIVE_CAPACITY)
        lib.vk_uart_save(self._uart, state, transmit, transmit_count, receive, receive_count)
        return UartState(
            **{name: getattr(state, name) for name in REGISTERS},
            transmit=bytes(ffi.buffer(transmit, transmit_count[0])),
            receive=bytes(ffi.buffer(receive, receive_count[0])),
        )

    def load(self, saved: UartState) -> None:
        """Take over a saved state; an interrupt that it holds is raised again.

        Raises: ConfigError (caller) when it is not a state this UART can be in.
        """
        registers = {name: getattr(saved, name) for name in REGISTERS}
        for name, value in registers.items():
            if not 0 <= value <= 0xFF:
                raise ConfigError(f"Saved UART register {name} is {value}; it must be 0 to 255")
        result = lib.vk_uart_load(
            self._uart,
            ffi.new("struct vk_uart_state *", registers),
            saved.transmit,
            len(saved.transmit),
            saved.receive,
            len(saved.receive),
        )
        if result < 0:
            raise ConfigError(
                f"Saved UART queues hold {len(saved.transmit)} and {len(saved.receive)} bytes; "
                f"at most {self._capacity} and {RECEIVE_CAPACITY} fit"
            )
