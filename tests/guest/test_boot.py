"""A stock Debian kernel boots to a shell, in every form it is shipped in."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.guest.conftest import BOOT_S, KERNELS, Guest, booted, words
from tools.images.firmware import cloudhv
from tools.images.initramfs import initramfs
from tools.images.kernels import Kernel, kernel
from vmm.testing.console import GuestConsole
from vmm.testing.process import VmmProcess

pytestmark = pytest.mark.guest

GIB = 1 << 30
CLOCK_S = 3.0
"""The clock of the CMOS counts whole seconds, and a busy host lets time go by before it is set."""

ENTER, DOWN = "\r", "\x1b[B"

PROOF = "uname -r; nproc; dmesg | grep -i 'hypervisor detected'; cat /proc/cmdline"


@pytest.mark.parametrize("vcpus", [1, 2])
@pytest.mark.parametrize("form", ["vmlinuz", "vmlinux"])
@pytest.mark.parametrize("release", KERNELS)
async def test_stock_kernel_boots_to_a_shell_and_powers_off(
    place: Path, release: str, form: str, vcpus: int
) -> None:
    image = kernel(release)
    arguments = ["--kernel", str(getattr(image, form)), "--initramfs", str(initramfs(image))]
    arguments += ["--cmdline", words(PROOF), "--cpus", f"boot={vcpus}"]
    arguments += ["--serial", "tty", "--console", "off"]

    async with VmmProcess.start(place, *arguments) as vmm:
        code = await vmm.wait(BOOT_S)
        output = vmm.output.decode().replace("\r", "")

    assert code == 0, vmm.transcript()
    assert f"\n{image.version}\n{vcpus}\n" in output, vmm.transcript()
    assert "Hypervisor detected: KVM" in output
    assert words(PROOF) in output
    assert "GUEST-RUN-END 0" in output


async def test_guest_with_more_than_3_gib_sees_ram_above_the_hole(
    place: Path, linux: Kernel, minimal: Path
) -> None:
    async with booted(place, linux, minimal, "--memory", "size=4608M") as guest:
        total_kib = int((await guest.run("grep MemTotal /proc/meminfo")).split()[1])
        ranges = await guest.run("ls /sys/firmware/memmap; grep 'System RAM' /proc/iomem")

        assert total_kib * 1024 > 4.2 * GIB
        assert "100000000-15fffffff : System RAM" in ranges


async def test_guest_sees_the_machine_that_was_configured(
    place: Path, linux: Kernel, minimal: Path
) -> None:
    platform = (
        "system_manufacturer=Maker,system_product_name=Thing,system_version=v7,"
        "system_serial_number=S-1,system_uuid=11223344-5566-7788-99aa-bbccddeeff00,"
        "system_sku_number=K-2,system_family=Kin,chassis_asset_tag=A-3,oem_strings=[first-one,second-one]"
    )
    async with booted(
        place, linux, minimal, "--platform", platform, "--cpus", "boot=2,topology=2:1:1:1"
    ) as guest:
        await check_time(guest)
        await check_identity(guest)
        await check_topology(guest)
        await check_pci(guest)
        await check_acpi(guest, place)


async def check_time(guest: Guest) -> None:
    """The guest has set its clock at boot by the machine's, which is the host's."""
    assert "setting system clock to" in await guest.run("dmesg | grep rtc_cmos")
    before = time.time()
    seen = int(await guest.run("date +%s"))
    assert before - CLOCK_S < seen < time.time() + CLOCK_S


async def check_identity(guest: Guest) -> None:
    names = "sys_vendor product_name product_version product_serial product_uuid product_sku"
    names += " product_family chassis_asset_tag"
    shown = await guest.run(f"cd /sys/class/dmi/id; cat {names}; cd /")
    assert shown.split() == [
        "Maker", "Thing", "v7", "S-1", "11223344-5566-7788-99aa-bbccddeeff00", "K-2", "Kin", "A-3",
    ]  # fmt: skip
    oem = await guest.run("strings /sys/firmware/dmi/tables/DMI")
    assert "first-one\nsecond-one\n" in oem


async def check_topology(guest: Guest) -> None:
    siblings = await guest.run("cat /sys/devices/system/cpu/cpu*/topology/thread_siblings_list")
    assert siblings.split() == ["0-1", "0-1"]


async def check_pci(guest: Guest) -> None:
    listed = await guest.run("ls /sys/bus/pci/devices")
    assert listed.split() == ["0000:00:00.0", "0000:00:01.0"]
    identity = await guest.run(
        "cd /sys/bus/pci/devices/0000:00:00.0; cat vendor device class; cd /"
    )
    assert identity.split() == ["0x8086", "0x0d57", "0x060000"]
    size = await guest.run("wc -c < /sys/bus/pci/devices/0000:00:00.0/config")
    assert size.strip() == "4096"


async def check_acpi(guest: Guest, place: Path) -> None:
    """Every table the guest sees disassembles, and compiles again without an error."""
    import base64

    import trio

    listed = await guest.run("cd /sys/firmware/acpi/tables; ls -p | grep -v /; cd /")
    assert {"APIC", "DSDT", "FACP", "MCFG"} <= set(listed.split())
    for name in listed.split():
        encoded = await guest.run(f"base64 /sys/firmware/acpi/tables/{name}")
        path = place / f"{name}.aml"
        path.write_bytes(base64.b64decode(encoded))
        done = await trio.run_process(
            ["iasl", "-d", str(path)], capture_stdout=True, capture_stderr=True, check=False
        )
        said = (done.stdout + done.stderr).decode()
        assert done.returncode == 0, said
        assert "Error" not in said, said


async def test_firmware_boots_to_its_shell(place: Path) -> None:
    serial = place / "serial.sock"
    arguments = ["--firmware", str(cloudhv()), "--memory", "size=512M"]
    arguments += ["--serial", f"socket={serial}", "--console", "off"]

    async with VmmProcess.start(place, *arguments, api=True) as vmm:
        await vmm.wait_until_served(BOOT_S)
        async with GuestConsole.connect(serial) as console:
            # There is no disk to boot from: the shell is the second entry of the boot menu.
            await console.wait_for("Press any key to enter the Boot Manager Menu", BOOT_S)
            await console.type(ENTER)
            shown = await console.wait_for("EFI Internal Shell", BOOT_S)
            await console.type(DOWN)
            await console.wait_for("EFI Internal Shell", BOOT_S, after=shown)
            await console.type(ENTER)
            await console.wait_for("UEFI Interactive Shell", BOOT_S)
            await console.wait_for("Shell> ", BOOT_S)
