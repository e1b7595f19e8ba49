"""A guest moves that looks at every block it reads: nothing that a device wrote is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.kvm.guests.moving import Host, host, move
from tests.kvm.guests.processes import machine, short_folder
from tools.bench.load_guest import DONE, build_kernel, read_report, step
from vmm.config.document import parse_object
from vmm.config.vm import VmConfig

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

place = short_folder

BLOCK, BLOCKS, DEPTH = 4096, 512, 32
STEPS = 40
"""More than are done while the guest moves."""
SECONDS = 100.0


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_kernel(tmp_path_factory.mktemp("load"))


async def boot(one: Host, kernel: Path, steps: list[str], **devices: object) -> None:
    debug = {"mode": "File", "file": str(one.log)}
    config = machine(kernel, debug_console=debug, **devices)
    config["payload"] = {"kernel": str(kernel), "cmdline": " ".join(steps)}
    await one.client.create(parse_object(VmConfig, config))
    await one.client.boot()


def lines(one: Host) -> list[str]:
    """The whole lines that the guest has said since a VMM opened the file last."""
    text = one.log.read_bytes().replace(b"\0", b"").decode()
    return text.split("\n")[:-1]


@pytest.mark.parametrize(
    ("rings", "options"),
    [("split", {}), ("packed", {}), ("split", {"direct": True, "disable_io_uring": True})],
    ids=["split", "packed", "threads"],
)
async def test_disk_under_load_moves_with_what_it_reads(
    place: Path, kernel: Path, rings: str, options: dict[str, object]
) -> None:
    image = place / "disk.raw"
    with image.open("wb") as file:
        file.truncate(BLOCKS * BLOCK)
    disk = {"path": str(image), "image_type": "Raw", **options}
    checks = [step("check", BLOCKS, DEPTH)] * STEPS
    steps = ["packed", *checks] if rings == "packed" else checks

    async with host(place, "a") as one, host(place, "b") as two, host(place, "c") as three:
        await boot(one, kernel, steps, disks=[disk])
        with trio.fail_after(SECONDS):
            while not lines(one):  # noqa: ASYNC110  a file cannot be waited on
                await trio.sleep(0.01)
            await move(one, two, f"unix:{place}/m1")
            await move(two, three, f"unix:{place}/m2", local=False)
            while DONE not in lines(three):  # noqa: ASYNC110
                await trio.sleep(0.01)

    *said, last = lines(three)
    assert last == DONE
    # The first line may have begun where the guest was before.
    reports = [read_report(line) for line in said[1:]]
    assert reports
    assert {report.numbers["wrong"] for report in reports} == {0}
