"""What a guest sees of the machine: processors, memory, clocks, interrupts, and its ends."""

from __future__ import annotations

import calendar
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.kvm.guests import programs
from tests.kvm.guests.image import RESULTS, write_kernel
from tests.kvm.guests.leaks import holdings, resident_bytes
from tests.kvm.guests.machines import (
    DEADLINE_S,
    SharedRam,
    configure,
    file_memory,
    owned,
    running,
)
from tests.kvm.guests.programs import COUNT_AND_TELL, HALT, POWER_OFF, RESET_BY, say, tell
from vmm.boot import layout
from vmm.errors import InternalError
from vmm.machine.chipset import GED_IRQ, GED_PAGE
from vmm.page import PAGE

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

GIB = 1 << 30
MIB = 1 << 20
AP_PAGE = 0x8000
AP_COUNT = 0x9000
PHYS_BITS = 36
GED_REGISTER = (1 << PHYS_BITS) - layout.UNUSED_TOP - (GED_PAGE + 1) * PAGE
POWER_BUTTON_VECTOR = 0x31


@pytest.fixture
def ram(tmp_path: Path) -> Iterator[SharedRam]:
    shared = SharedRam(tmp_path)
    yield shared
    shared.close()


async def test_second_vcpu_started_by_sipi_counts_beside_the_first(
    tmp_path: Path, ram: SharedRam
) -> None:
    second = f"9: lock incl {AP_COUNT}; mov $'2', %al; out %al, $0xe9; jmp 9b"
    source = f"""
        {programs.copy_code("second", "end", AP_PAGE)}
        {programs.start_second_vcpu(AP_PAGE)}
        {COUNT_AND_TELL}
        second:
        .code16
        {second}
        end:
    """
    config = configure(
        write_kernel(tmp_path, source),
        cpus={"boot_vcpus": 2, "max_vcpus": 2},
        memory=file_memory(ram.path),
    )

    async with running(config) as vm:
        await vm.debug.wait_for(b"2")
        await vm.debug.wait_for(b".")

    assert ram.word(AP_COUNT) > 0
    assert ram.word(RESULTS) > 0


async def test_pause_stops_a_counter_and_resume_lets_it_go_on(
    tmp_path: Path, ram: SharedRam
) -> None:
    config = configure(write_kernel(tmp_path, COUNT_AND_TELL), memory=file_memory(ram.path))
    async with running(config) as vm:
        await vm.debug.wait_for(b".")

        await vm.machine.pause()
        stopped = ram.word()
        await trio.sleep(0.02)  # Time enough for thousands of counts, were it running.
        assert ram.word() == stopped

        said = len(vm.debug.output)
        await vm.machine.resume()
        await vm.debug.wait_for(b".", after=said)
        assert ram.word() > stopped


async def test_paused_machine_can_be_resumed_and_paused_at_once(tmp_path: Path) -> None:
    config = configure(
        write_kernel(tmp_path, programs.ASK_THE_LOOP), cpus={"boot_vcpus": 2, "max_vcpus": 2}
    )
    async with running(config) as vm:
        with trio.fail_after(DEADLINE_S):
            for _ in range(50):
                await vm.machine.pause()
                await vm.machine.resume()


async def test_pause_that_is_cut_off_lets_the_guest_run_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = write_kernel(tmp_path, programs.COUNT_AND_TELL)
    async with running(configure(kernel)) as vm:
        monkeypatch.setattr(vm.machine._devices, "sleep", trio.sleep_forever)
        with trio.move_on_after(0.2) as cut:
            await vm.machine.pause()
        assert cut.cancelled_caught
        await vm.debug.wait_for(b".", after=len(vm.debug.output))


async def test_pause_after_a_triple_fault_does_not_wait_for_the_dead_vcpu(tmp_path: Path) -> None:
    async with running(configure(write_kernel(tmp_path, RESET_BY["triple fault"]))) as vm:
        with trio.fail_after(DEADLINE_S):
            await vm.wishes.reset.wait()

            await vm.machine.pause()


async def test_ram_above_the_hole_is_a_zone_of_its_own_file(tmp_path: Path) -> None:
    with (tmp_path / "high").open("wb") as file:
        file.truncate(1536 * MIB)
    at = 4 * GIB + 3 * MIB
    source = f"""
        {programs.map_window(at)}
        mov ${programs.WINDOW + at % (2 * MIB)}, %esi
        movl $0x600df00d, (%esi)
        mov (%esi), %eax
        {tell()}
        {HALT}
    """
    zones = [
        {"id": "low", "size": 3 * GIB},
        {"id": "high", "size": 1536 * MIB, "file": str(tmp_path / "high"), "shared": True},
    ]
    config = configure(write_kernel(tmp_path, source), memory={"size": 0, "zones": zones})

    async with running(config) as vm:
        told = await vm.debug.wait_for_bytes(4)
        size = vm.machine.memory_actual_size

    assert int.from_bytes(told, "little") == 0x600D_F00D
    assert size == 4608 * MIB
    with (tmp_path / "high").open("rb") as file:
        file.seek(at - 4 * GIB)
        assert file.read(4) == bytes.fromhex("0df00d60")


@pytest.mark.parametrize(
    "options",
    [
        {"shared": True},
        {"prefault": True},
        {"shared": True, "prefault": True},
        {"mergeable": True},
        {"thp": False},
        {"reserve": True},
    ],
    ids=lambda options: "+".join(options),
)
async def test_guest_runs_on_each_kind_of_memory(
    tmp_path: Path, options: dict[str, object]
) -> None:
    memory = {"size": 4608 * MIB if options == {"shared": True} else 64 * MIB, **options}
    config = configure(write_kernel(tmp_path, say("alive") + HALT), memory=memory)

    async with running(config) as vm:
        await vm.debug.wait_for(b"alive")


async def test_prefault_touches_every_page_before_the_guest_runs(tmp_path: Path) -> None:
    shared = SharedRam(tmp_path)
    shared.close()
    memory = file_memory(shared.path)
    memory["zones"][0]["prefault"] = True  # type: ignore[index]
    config = configure(write_kernel(tmp_path, say("alive") + HALT), memory=memory)

    async with running(config) as vm:
        await vm.debug.wait_for(b"alive")

        assert resident_bytes(shared.path) == 64 * MIB


async def test_shared_and_private_memory_are_what_they_say(tmp_path: Path) -> None:
    kernel = write_kernel(tmp_path, say("alive") + HALT)
    for shared in (True, False):
        config = configure(kernel, memory={"size": 64 * MIB, "shared": shared})
        async with running(config):
            assert any("memfd:ram-mem0" in name for name in holdings().mappings) is shared


async def test_nmi_arrives_in_a_halted_guest(tmp_path: Path) -> None:
    source = f"""
        {programs.take_interrupt(2, "nmi")}
        {say("ready")}
        {HALT}
        nmi: {say("NMI")}
        {HALT}
    """
    async with running(configure(write_kernel(tmp_path, source))) as vm:
        await vm.debug.wait_for(b"ready")

        vm.machine.inject_nmi()

        await vm.debug.wait_for(b"readyNMI")


async def test_power_button_raises_the_event_interrupt_with_its_bit(tmp_path: Path) -> None:
    source = f"""
        {programs.take_interrupt(POWER_BUTTON_VECTOR, "event")}
        {programs.let_through(GED_IRQ, POWER_BUTTON_VECTOR)}
        {say("ready")}
        sti
        {HALT.removeprefix("cli;")}
        event: {programs.map_window(GED_REGISTER)}
        mov ${programs.WINDOW + GED_REGISTER % (2 * MIB)}, %esi
        mov (%esi), %al
        out %al, $0xe9
        mov (%esi), %al
        out %al, $0xe9
        {HALT}
    """
    cpus = {"boot_vcpus": 1, "max_vcpus": 1, "max_phys_bits": PHYS_BITS}
    async with running(configure(write_kernel(tmp_path, source), cpus=cpus)) as vm:
        ready = await vm.debug.wait_for(b"ready")

        vm.machine.press_power_button()
        read = (await vm.debug.wait_for_bytes(ready + 2))[ready:]

    assert read == bytes((1 << 3, 0))


async def test_debug_console_in_mode_file_keeps_all_of_the_output(tmp_path: Path) -> None:
    path = tmp_path / "console"
    config = configure(
        write_kernel(tmp_path, say("first ") + say("and last words") + POWER_OFF),
        debug_console={"mode": "File", "file": str(path)},
    )

    async with owned(config) as held:
        await held.wait_until_ended()

    assert path.read_text() == "first and last words"


async def test_debug_console_answers_on_its_own_port(tmp_path: Path) -> None:
    config = configure(
        write_kernel(tmp_path, say("elsewhere", port=0x3E9) + HALT),
        debug_console={"mode": "Null", "iobase": 0x3E9},
    )
    async with running(config) as vm:
        await vm.debug.wait_for(b"elsewhere")


async def test_pm_timer_advances_at_its_rate(tmp_path: Path) -> None:
    read = f"mov $0x608, %dx; in %dx, %eax; {tell()}"
    async with running(configure(write_kernel(tmp_path, read * 2 + HALT))) as vm:
        start = time.monotonic()
        told = await vm.debug.wait_for_bytes(8)
        seconds = time.monotonic() - start

    first, second = (int.from_bytes(told[at : at + 4], "little") for at in (0, 4))
    assert 0 < (second - first) % (1 << 32) < (seconds + 1) * 3_579_545


async def test_cmos_tells_the_time_of_the_host(tmp_path: Path) -> None:
    registers = (0x32, 0x09, 0x08, 0x07, 0x04, 0x02, 0x00)
    read = "".join(
        f"mov ${register}, %al; out %al, $0x70; in $0x71, %al; out %al, $0xe9;"
        for register in registers
    )
    before = int(time.time())
    async with running(configure(write_kernel(tmp_path, read + HALT))) as vm:
        told = await vm.debug.wait_for_bytes(len(registers))

    guest = calendar.timegm(time.strptime(told.hex(), "%Y%m%d%H%M%S"))
    assert before - 1 <= guest <= time.time()


@pytest.mark.parametrize("way", RESET_BY)
async def test_reset_reboots_and_the_events_say_so(
    tmp_path: Path, ram: SharedRam, way: str
) -> None:
    source = f"""
        incl {RESULTS}
        cmpl $1, {RESULTS}
        jne 1f
        {RESET_BY[way]}
        1: {POWER_OFF}
    """
    config = configure(write_kernel(tmp_path, source), memory=file_memory(ram.path))

    async with owned(config) as held:
        await held.wait_until_ended()

    assert ram.word() == 2
    assert held.events.names == [
        "booting", "booted", "rebooting", "rebooted", "shutdown", "deleted",
    ]  # fmt: skip


async def test_power_off_with_no_shutdown_leaves_a_created_vm(tmp_path: Path) -> None:
    async with owned(configure(write_kernel(tmp_path, POWER_OFF)), no_shutdown=True) as held:
        await held.events.wait_for("shutdown")

        assert held.owner.info().state == "Created"
        assert not held.ended.is_set()


async def test_guest_that_kvm_cannot_run_ends_the_vm_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = configure(write_kernel(tmp_path, programs.EMULATION_FAILURE))

    async with owned(config) as held:
        await held.wait_until_ended()

    assert held.events.names[-2:] == ["shutdown", "deleted"]
    assert "vCPU 0 cannot go on: INTERNAL_ERROR 0x1" in caplog.text


async def test_guest_that_kvm_cannot_run_fails_the_machine(tmp_path: Path) -> None:
    config = configure(write_kernel(tmp_path, programs.EMULATION_FAILURE))

    with pytest.RaisesGroup(InternalError, flatten_subgroups=True), trio.fail_after(DEADLINE_S):
        async with running(config):
            await trio.sleep_forever()
