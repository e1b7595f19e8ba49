"""A VMM under Landlock: it runs its VM, and opens nothing that nobody gave it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from tests.kvm.guests import programs
from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.meddling import Deed, Meddler, free_port
from tests.kvm.guests.moving import move, two_hosts
from tests.kvm.guests.processes import (
    SECONDS,
    SMALL,
    check_left_in_order,
    machine,
    run_to_its_end,
    running,
    short_folder,
)
from vmm.errors import HostError
from vmm.kvm_cffi.landlock import Ruleset
from vmm.migration.protocol import Command
from vmm.testing.process import VmmProcess

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm", "landlock")]

place = short_folder


@pytest.fixture
def landlock() -> None:
    """A host with Landlock; the test is skipped on others."""
    try:
        Ruleset().close()
    except HostError as error:
        pytest.skip(str(error))


def make_disk(path: Path) -> dict[str, object]:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(1 << 20))
    return {"path": str(path), "image_type": "Raw"}


async def refusal(vmm: VmmProcess, name: str, body: object) -> str:
    """What a request that Landlock forbids is answered."""
    reply = await vmm.api("PUT", name, body)
    assert reply.status == 400, reply.body
    return " | ".join(json.loads(reply.body))


async def test_vm_of_the_command_line_keeps_its_files_and_those_of_its_rules_only(
    place: Path,
) -> None:
    own, allowed, other = (make_disk(place / name / "disk") for name in ("own", "allowed", "other"))
    kernel, vsock = write_kernel(place, programs.HALT), place / "own" / "vsock"
    shared = make_disk(place / "shared" / "memory")["path"]
    arguments = (
        *("--kernel", str(kernel), *SMALL, "--landlock", "--disk"),
        *(f"path={own['path']},image_type=raw", "--vsock", f"cid=3,socket={vsock}"),
        *("--landlock-rules", f"path={place / 'allowed'},access=rw"),
        *("--serial", f"file={place / 'serial'}", "--ivshmem", f"path={shared},size=4K"),
    )
    async with running(place, *arguments) as vmm:
        await vmm.wait_for_state("Running", SECONDS)

        text = await refusal(vmm, "vm.add-disk", other)
        assert "landlock_enable (--landlock) is on, and nothing keeps " + str(other["path"]) in text
        assert "landlock_rules (--landlock-rules)" in text
        await vmm.put("vm.add-disk", {**allowed, "id": "more"})
        core = place / "core"
        assert str(core) in await refusal(vmm, "vm.coredump", {"destination_url": f"file://{core}"})
        core = place / "allowed" / "core"
        await vmm.put("vm.coredump", {"destination_url": f"file://{core}"})
        assert core.stat().st_size > 0

        # All that the VM has can be opened again, the consoles too.
        await vmm.put("vm.reboot")
        await vmm.put("vm.shutdown")
        await vmm.put("vm.boot")
        assert {"more", "__ivshmem"} <= (await vmm.info())["device_tree"].keys()
        assert await vmm.stop() == 0
        check_left_in_order(vmm)
    assert not vsock.exists()


async def test_vm_of_the_api_is_confined_when_it_is_created(place: Path) -> None:
    kernel = write_kernel(place, programs.HALT)
    other = make_disk(place / "other" / "disk")
    async with running(place) as vmm:
        rules = [{"path": str(kernel), "access": "r"}]
        await vmm.put(
            "vm.create", machine(kernel, landlock_enable=True, landlock_rules=rules, rtc={})
        )
        assert (await vmm.info())["config"]["landlock_rules"] == rules
        await vmm.put("vm.boot")
        await refusal(vmm, "vm.add-disk", other)

        # Nothing gives a file back.
        await vmm.put("vm.delete")
        await vmm.put("vm.create", machine(kernel, disks=[other]))
        reply = await vmm.api("PUT", "vm.boot")
        assert reply.status == 500
        assert b"Permission denied" in reply.body
        assert await vmm.stop() == 0
        check_left_in_order(vmm)


@pytest.mark.parametrize("access", ["r", "w"])
async def test_rule_gives_no_more_than_its_access(place: Path, access: str) -> None:
    disk = make_disk(place / "more" / "disk")
    kernel = write_kernel(place, programs.HALT)
    rule = f"path={place / 'more'},access={access}"
    arguments = ("--kernel", str(kernel), *SMALL, "--landlock", "--landlock-rules", rule)
    async with running(place, *arguments) as vmm:
        await vmm.wait_for_state("Running", SECONDS)

        await refusal(vmm, "vm.add-disk", disk)
        reply = await vmm.api("PUT", "vm.add-disk", {**disk, "readonly": True})
        assert (reply.status == 200) == (access == "r"), reply.body


async def test_file_that_is_not_there_is_named(place: Path) -> None:
    kernel = write_kernel(place, programs.HALT)
    absent = place / "absent"

    ended = await run_to_its_end(
        *("--kernel", str(kernel), *SMALL, "--landlock", "--disk", f"path={absent}")
    )

    assert ended.returncode == 1
    assert f"open for Landlock on {absent} failed: No such file" in ended.stderr.decode()


@pytest.mark.parametrize("mode", ["copy", "ondemand"])
async def test_confined_vm_is_written_where_a_rule_lets_it_and_brought_back_confined(
    place: Path, mode: str
) -> None:
    kernel, kept = write_kernel(place, programs.HALT), place / "kept"
    kept.mkdir()
    rules = ("--landlock", "--landlock-rules", f"path={kept},access=rw")
    other = f"file://{place / 'other'}"
    (place / "other").mkdir()
    async with running(place, "--kernel", str(kernel), *SMALL, *rules) as vmm:
        await vmm.wait_for_state("Running", SECONDS)
        await vmm.put("vm.pause")
        await refusal(vmm, "vm.snapshot", {"destination_url": other})
        await vmm.put("vm.snapshot", {"destination_url": f"file://{kept}"})
        assert await vmm.stop() == 0

    source = f"source_url=file://{kept},resume=true,memory_restore_mode={mode}"
    async with running(place, "--restore", source) as vmm:
        await vmm.wait_for_state("Running", SECONDS)
        await refusal(vmm, "vm.add-disk", make_disk(place / "more" / "disk"))
        await vmm.put("vm.reboot")
        assert await vmm.stop() == 0
        check_left_in_order(vmm)


async def test_confined_vm_is_confined_where_it_moves_to_as_well(place: Path) -> None:
    disk = make_disk(place / "more" / "disk")
    async with two_hosts(place) as (one, other):
        await one.boot(place, landlock_enable=True)
        await one.rounds(3)

        await move(one, other, f"unix:{place}/m")

        await other.rounds(3)
        await refusal(other.vmm, "vm.add-disk", disk)
        assert not (place / "m").exists()
        assert await other.vmm.stop() == 0


async def test_confined_vm_stays_where_it_is_if_its_rules_cannot_be_kept_elsewhere(
    place: Path,
) -> None:
    gone = place / "gone"
    gone.mkdir()
    async with two_hosts(place) as (one, other):
        rules = [{"path": str(gone), "access": "rw"}]
        await one.boot(place, landlock_enable=True, landlock_rules=rules)
        await one.rounds(3)
        gone.rmdir()

        with pytest.raises(ExceptionGroup):
            await move(one, other, f"unix:{place}/m")

        await one.rounds(3)
        assert (await other.vmm.api("GET", "vm.info")).status == 404


async def test_vmm_is_not_confined_by_a_vm_that_did_not_come(place: Path) -> None:
    disk = make_disk(place / "more" / "disk")
    target = free_port()
    async with two_hosts(place) as (one, other):
        await one.boot(place, landlock_enable=True)
        await one.rounds(3)
        async with trio.open_nursery() as nursery:
            await nursery.start(other.refused_receive, f"tcp:127.0.0.1:{target}")
            # All of it has come, and the machine is built.
            meddler = Meddler(target, Command.COMPLETE, Deed.CUT_BEFORE)
            await nursery.start(meddler.run)
            await one.refused_send(f"tcp:127.0.0.1:{meddler.port}")

        await other.boot(place, disks=[disk])
        await other.rounds(3)
