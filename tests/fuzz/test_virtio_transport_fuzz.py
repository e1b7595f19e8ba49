"""No access to a virtio function, of any offset, size and value, raises or gives too wide a value.

The accesses follow each other on one function, with a device that runs: what one leaves behind is
what the next one meets. The driver may be up when they begin, so that they break a working device.
"""

from __future__ import annotations

from collections.abc import Callable

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.testing.memory import FakeMemory
from vmm.testing.virtio_pci import driven
from vmm.virtio.chain import Chain
from vmm.virtio.device import Active, VirtioDevice, serve_chains
from vmm.virtio.pci_transport import BAR_SIZE
from vmm.virtio.queue import Queue
from vmm.virtio.spec import DeviceId, Feature

SIZES = st.sampled_from([1, 2, 4, 8])
INTERESTING = st.sampled_from([0, 1, 2, 3, 4, 8, 11, 15, 64, 128, 0xFFFF, 0xFEE0_0000, 1 << 40])
VALUES = st.one_of(INTERESTING, st.integers(0, (1 << 64) - 1))
# Few offsets of the BAR mean anything: most of the draws go there.
REGISTERS = st.one_of(
    st.sampled_from([0, 4, 8, 12, 16, 20, 22, 24, 26, 28, 32, 36, 40, 48, 58]),
    st.integers(0, 0x40),
    st.integers(0x1FFC, 0x2008),
    st.integers(0x4000, 0x4010),
    st.integers(0x6000, 0x6010),
    st.integers(0x8000, 0x8040),
    st.integers(0x48000, 0x48010),
    st.integers(0, BAR_SIZE - 1),
)
BAR_ACCESSES = st.tuples(st.just("bar"), st.booleans(), REGISTERS, SIZES, VALUES)
SPACE_ACCESSES = st.tuples(
    st.just("space"), st.just(True), st.integers(0, 255), st.sampled_from([1, 2, 4]), VALUES
)
KICKS = st.tuples(st.just("run"), st.just(True), st.just(0), st.just(1), st.just(0))
ACCESSES = st.lists(st.one_of(BAR_ACCESSES, BAR_ACCESSES, SPACE_ACCESSES, KICKS), max_size=60)


class Target(VirtioDevice):
    """Every feature of the transport, and a queue that is served."""

    DEVICE_ID = DeviceId.CONSOLE
    RING_FEATURES = (
        Feature.RING_EVENT_IDX
        | Feature.RING_INDIRECT_DESC
        | Feature.RING_PACKED
        | Feature.RING_RESET
    )

    @property
    def queue_sizes(self) -> tuple[int, ...]:
        return (16, 16)

    def read_config(self, offset: int, size: int) -> bytes:
        return b"0123456789"[offset : offset + size]

    async def run_queue(self, queue: Queue, active: Active) -> None:
        await serve_chains(queue, self._answer)

    async def _answer(self, chain: Chain) -> int:
        return chain.write(chain.read(64))


@settings(max_examples=150, deadline=None)
@given(is_up=st.booleans(), accesses=ACCESSES)
def test_no_access_to_a_virtio_function_raises(
    is_up: bool, accesses: list[tuple[str, bool, int, int, int]]
) -> None:
    trio.run(_access_all, is_up, accesses)


async def _access_all(is_up: bool, accesses: list[tuple[str, bool, int, int, int]]) -> None:
    async with driven(Target("target"), FakeMemory((0, 1 << 20))) as bench:
        if is_up:
            for queue in await bench.driver.start(size=8):
                queue.add([b"question"], [16])
        transport = bench.transport
        writers: dict[str, Callable[[int, int, int], object]] = {
            "bar": transport.write,
            "space": lambda offset, size, value: transport.write_configuration(
                offset, min(size, 4 - offset % 4), value
            ),
        }
        for kind, is_write, offset, size, value in accesses:
            value &= (1 << 8 * size) - 1
            if kind == "run":
                bench.driver.kick(value & 1)
                await trio.testing.wait_all_tasks_blocked()
            elif is_write:
                width = min(size, 4 - offset % 4) if kind == "space" else size
                writers[kind](offset, width, value & (1 << 8 * width) - 1)
            else:
                assert 0 <= transport.read(offset, size) < 1 << 8 * size
        await trio.testing.wait_all_tasks_blocked()
