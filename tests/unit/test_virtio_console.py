"""The console device, driven as Linux does, on a back end that a test plays."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from vmm.console import WindowSize
from vmm.errors import ConfigError
from vmm.testing.backends import MemoryConsole
from vmm.testing.virtio_pci import Bench, driven
from vmm.virtio.console import EMERGENCY_CHARACTERS, MAX_WRITE_BYTES, Console
from vmm.virtio.spec import Feature, Status

CONFIG_VECTOR, RECEIVE_VECTOR, TRANSMIT_VECTOR = range(3)
EMERGENCY = 8


@pytest.fixture
def backend() -> MemoryConsole:
    return MemoryConsole(WindowSize(25, 80))


@pytest.fixture
async def bench(backend: MemoryConsole) -> AsyncIterator[Bench]:
    async with driven(Console("__console", backend)) as bench:
        yield bench


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def test_console_is_one_port_with_a_size_and_an_emergency_register(bench: Bench) -> None:
    offered = await bench.driver.offered()

    rings = Feature.VERSION_1 | Feature.RING_PACKED | Feature.RING_RESET
    assert offered == rings | 1 << 0 | 1 << 2
    assert bench.device.queue_sizes == (256, 256)
    assert bench.device.read_config(0, 4096) == bytes.fromhex("5000 1900 01000000 00000000")


async def test_config_without_a_terminal_shows_no_size(
    bench: Bench, backend: MemoryConsole
) -> None:
    backend.size = None

    assert bench.driver.read_config(0, 4) == 0


async def test_output_of_one_wake_is_printed_in_order_with_one_interrupt(
    bench: Bench, backend: MemoryConsole
) -> None:
    _, output = await bench.driver.start()
    for number in range(100):
        output.add([b"line ", b"%d\n" % number])

    bench.driver.kick(1)
    await bench.interrupt(TRANSMIT_VECTOR)
    await settle()

    assert backend.written == b"".join(b"line %d\n" % number for number in range(100))
    assert [used.written for used in output.collect()] == [0] * 100


async def test_output_chain_is_done_while_a_slow_terminal_still_holds_its_text(
    bench: Bench, backend: MemoryConsole
) -> None:
    _, output = await bench.driver.start()
    backend.is_stalled = True
    output.add([b"one"])
    bench.driver.kick(1)
    await bench.interrupt(TRANSMIT_VECTOR)
    output.add([b"two"])
    bench.driver.kick(1)
    await settle()

    assert len(output.collect()) == 1
    assert backend.written == b"one"


async def test_output_cut_off_by_a_stop_is_not_printed_twice(
    bench: Bench, backend: MemoryConsole
) -> None:
    _, output = await bench.driver.start()
    backend.is_stalled = True
    output.add([b"once"])
    bench.driver.kick(1)
    await settle()

    await bench.transport.sleep()
    backend.is_stalled = False
    bench.transport.wake()
    output.add([b" more"])
    bench.driver.kick(1)
    await settle()

    assert backend.written == b"once more"


@pytest.mark.parametrize("text", [[b""], [b"x" * 4096] * 30])
async def test_output_of_any_length_is_completed(
    bench: Bench, backend: MemoryConsole, text: list[bytes]
) -> None:
    _, output = await bench.driver.start()
    output.add(text)

    bench.driver.kick(1)
    await settle()

    assert backend.written == b"".join(text)
    assert len(output.collect()) == 1


async def test_output_longer_than_the_limit_breaks_the_device(bench: Bench) -> None:
    _, output = await bench.driver.start()
    output.add([b"x" * (MAX_WRITE_BYTES + 1)])

    bench.driver.kick(1)
    await bench.interrupt(CONFIG_VECTOR)

    assert bench.driver.status & Status.NEEDS_RESET
    assert str(MAX_WRITE_BYTES) in bench.events.seen[-1][2]["reason"]


async def test_keys_go_into_the_guest_s_buffers(bench: Bench, backend: MemoryConsole) -> None:
    input_, _ = await bench.driver.start()
    input_.add(writable=[4])
    input_.add(writable=[64])
    bench.driver.kick(0)

    await backend.type.send(b"ls -l\r")
    await bench.interrupt(RECEIVE_VECTOR)
    await settle()

    assert [used.data for used in input_.collect()] == [b"ls -", b"l\r"]


async def test_keys_without_a_buffer_wait_and_no_more_are_read(
    bench: Bench, backend: MemoryConsole
) -> None:
    input_, _ = await bench.driver.start()
    for key in (b"a", b"b", b"c"):
        await backend.type.send(key)
    await settle()
    assert backend.waiting == 2

    for _ in range(3):
        input_.add(writable=[16])
    bench.driver.kick(0)
    await settle()

    assert b"".join(used.data for used in input_.collect()) == b"abc"


async def test_keys_are_left_to_the_host_while_there_is_no_driver(
    bench: Bench, backend: MemoryConsole
) -> None:
    await backend.type.send(b"a")
    await settle()
    assert backend.waiting == 1

    await bench.driver.start()
    await settle()
    assert backend.waiting == 0


async def test_keys_in_hand_survive_a_stop_and_a_snapshot(
    bench: Bench, backend: MemoryConsole
) -> None:
    await bench.driver.start()
    await backend.type.send(b"key")
    await settle()
    await bench.transport.sleep()
    state = bench.device.save()

    again = Console("__console", MemoryConsole())
    again.load(state)
    async with driven(again) as other:
        input_, _ = await other.driver.start()
        input_.add(writable=[16])
        other.driver.kick(0)
        await settle()
        assert [used.data for used in input_.collect()] == [b"key"]


@pytest.mark.parametrize("state", [{}, {"input": "no hex"}])
def test_load_of_no_state_is_refused(state: dict[str, object]) -> None:
    async def load() -> None:
        Console("__console", MemoryConsole()).load(state)

    with pytest.raises(ConfigError, match="__console"):
        trio.run(load)


async def test_buffer_without_room_for_keys_breaks_the_device(
    bench: Bench, backend: MemoryConsole
) -> None:
    input_, _ = await bench.driver.start()
    input_.add([b"readable"])
    bench.driver.kick(0)
    await backend.type.send(b"a")

    await bench.interrupt(CONFIG_VECTOR)

    assert bench.driver.status & Status.NEEDS_RESET


async def test_resized_terminal_interrupts_and_shows_its_size(
    bench: Bench, backend: MemoryConsole
) -> None:
    await bench.driver.start()
    assert bench.driver.read_config(0, 4) == 25 << 16 | 80
    await settle()

    backend.resize(50, 132)
    await bench.interrupt(CONFIG_VECTOR)

    assert bench.driver.read_config(0, 4) == 50 << 16 | 132
    assert not bench.driver.status & Status.NEEDS_RESET


async def test_size_is_told_with_the_first_text_and_after_each_sleep(
    bench: Bench, backend: MemoryConsole
) -> None:
    _, output = await bench.driver.start()
    for _ in range(2):
        output.add([b"text"])
        bench.driver.kick(1)
        await bench.interrupt(CONFIG_VECTOR)
        output.add([b"more"])
        bench.driver.kick(1)
        await settle()
        assert not bench.sources.is_pending(CONFIG_VECTOR)
        await bench.transport.sleep()
        bench.transport.wake()


async def test_size_that_is_not_known_is_not_told(bench: Bench, backend: MemoryConsole) -> None:
    backend.size = None
    _, output = await bench.driver.start()
    output.add([b"text"])

    bench.driver.kick(1)
    await settle()

    assert not bench.sources.is_pending(CONFIG_VECTOR)


async def test_emergency_write_is_printed_without_a_driver(backend: MemoryConsole) -> None:
    console = Console("__console", backend)
    async with driven(console) as bench, trio.open_nursery() as nursery:
        nursery.start_soon(console.run_emergency)
        for character in b"Oops\n":
            await bench.driver.write_config(EMERGENCY, 4, character)
        await settle()
        nursery.cancel_scope.cancel()

    assert backend.written == b"Oops\n"


async def test_emergency_writes_beyond_the_bound_are_lost(backend: MemoryConsole) -> None:
    console = Console("__console", backend)
    for _ in range(EMERGENCY_CHARACTERS + 100):
        console.write_config(EMERGENCY, b"x\0\0\0")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(console.run_emergency)
        await settle()
        nursery.cancel_scope.cancel()

    assert backend.written == b"x" * EMERGENCY_CHARACTERS


async def test_write_elsewhere_in_the_config_changes_nothing(
    bench: Bench, backend: MemoryConsole
) -> None:
    before = bench.device.read_config(0, 12)

    for offset in (0, 2, 4, 9, 11, 12, 4000):
        await bench.driver.write_config(offset, 1, 0xFF)

    assert bench.device.read_config(0, 12) == before
    assert backend.written == b""


async def test_last_words_are_the_emergency_writes_that_were_not_printed(
    backend: MemoryConsole,
) -> None:
    console = Console("__console", backend)
    for character in (b"a", b"b"):
        console.write_config(EMERGENCY, character + bytes(3))

    assert console.last_words() == b"ab"
    assert console.last_words() == b""
