"""Any sequence of accesses, input and draining: the UART loses no byte and no interrupt.

Invariants: the status bits say what the queues hold, every byte written comes out or is counted as
dropped, a condition that becomes pending comes with an edge, and a saved state is taken back whole.
"""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from vmm.kvm_cffi import Uart, UartState

CAPACITY = 48
BYTES = st.integers(0, 255)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 9), BYTES, st.sampled_from([1, 1, 1, 1, 2, 4])),
        st.tuples(st.just("read"), st.integers(0, 9), BYTES, st.sampled_from([1, 1, 1, 4, 8])),
        st.tuples(st.just("fill"), st.integers(1, 80), BYTES, st.just(1)),
        st.tuples(st.just("receive"), st.integers(0, 300), BYTES, st.just(1)),
        st.tuples(st.just("drain"), st.just(0), st.just(0), st.just(1)),
        st.tuples(st.just("reload"), st.just(0), st.just(0), st.just(1)),
    ),
    max_size=60,
)


def signalled(fd: int) -> bool:
    try:
        return os.eventfd_read(fd) > 0
    except BlockingIOError:
        return False


def pending(state: UartState) -> set[str]:
    """Return the enabled conditions that are true, from the data sheet's table."""
    conditions = {
        "line": state.ier & 4 and state.lsr & 0x1E,
        "input": state.ier & 1 and state.receive,
        "empty": state.ier & 2 and state.thre_pending,
        "modem": state.ier & 8 and state.msr & 0x0F,
    }
    return {name for name, is_true in conditions.items() if is_true}


def is_transmitting(state: UartState, step: tuple[str, int, int, int]) -> bool:
    """Tell whether a write step puts a byte on the line."""
    kind, offset, _, size = step
    to_line = not state.lcr & 0x80 and not state.mcr & 0x10
    return kind in ("write", "fill") and to_line and size == 1 and (offset == 0 or kind == "fill")


def act(uart: Uart, step: tuple[str, int, int, int]) -> bytes:
    """Do one step; return the output that it took."""
    kind, offset, value, size = step
    match kind:
        case "write":
            assert uart.write(offset, value, size)
        case "read":
            answer = uart.read(offset, size)
            assert answer is not None
            assert size == 1 or answer == (1 << 8 * size) - 1
        case "fill":
            for _ in range(offset):
                uart.write(0, value)
        case "receive":
            assert 0 <= uart.receive(bytes([value]) * offset) <= offset
        case "drain":
            return uart.drain()
        case _:
            uart.load(uart.save())
    return b""


def check(uart: Uart) -> UartState:
    state = uart.save()
    assert state.ier <= 0x0F
    assert state.mcr <= 0x1F
    assert len(state.transmit) <= CAPACITY
    assert bool(state.lsr & 0x01) == bool(state.receive)
    has_room = CAPACITY - len(state.transmit) >= 16
    assert state.lsr & 0x60 == (0x60 if has_room else 0)
    return state


@given(steps=STEPS)
def test_uart_any_steps_keep_the_invariants(steps: list[tuple[str, int, int, int]]) -> None:
    irq = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        with Uart(irq, transmit_capacity=CAPACITY) as uart:
            before = check(uart)
            written, drained = 0, 0
            for step in steps:
                if is_transmitting(before, step):
                    written += step[1] if step[0] == "fill" else 1
                signalled(irq)
                drained += len(act(uart, step))

                after = check(uart)
                raised = signalled(irq)
                assert raised or not pending(after) - pending(before)
                if step[0] == "reload":
                    assert after == before
                before = after
            assert written == drained + len(before.transmit) + uart.dropped
    finally:
        os.close(irq)
