"""The ACPI tables: where they lie, that they check, and what each says."""

from __future__ import annotations

import shutil
import struct
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from vmm.acpi.machine import Machine, PciSegment
from vmm.acpi.tables import LIMIT_ADDRESS, RSDP_ADDRESS, build
from vmm.errors import ConfigError
from vmm.pci.allocator import Span

GED_ADDRESS = 0x3FFF_FFFE_D000
PCI_HOTPLUG_ADDRESS = 0x3FFF_FFFE_F000
CPU_HOTPLUG_ADDRESS = 0x3FFF_FFFE_E000
GIB = 1 << 30

SEGMENT_0 = PciSegment(
    id=0,
    ecam=Span(0xE800_0000, 1 << 20),
    mmio32=Span(0xC000_0000, 640 << 20),
    mmio64=Span(4 * GIB, 1024 * GIB),
)
SEGMENT_10 = PciSegment(
    id=10,
    ecam=Span(0xE8A0_0000, 1 << 20),
    mmio32=Span(0xE000_0000, 4096),
    mmio64=Span(2048 * GIB, 4 * GIB),
)
MACHINE = Machine(
    apic_ids=(0, 1, 2, 0x1234),
    boot_vcpus=2,
    segments=(SEGMENT_0, SEGMENT_10),
    ged_address=GED_ADDRESS,
    pci_hotplug_address=PCI_HOTPLUG_ADDRESS,
    cpu_hotplug_address=CPU_HOTPLUG_ADDRESS,
)


def split(block: bytes) -> dict[str, tuple[int, bytes]]:
    """Give address and bytes of each table that follows the RSDP."""
    tables = {}
    at = 36
    while at < len(block):
        signature, size = struct.unpack_from("<4sI", block, at)
        tables[signature.decode()] = (RSDP_ADDRESS + at, block[at : at + size])
        at += size
    return tables


def table(machine: Machine, signature: str) -> bytes:
    return split(build(machine))[signature][1]


def test_rsdp_of_any_machine_checks_and_leads_to_the_xsdt() -> None:
    block = build(MACHINE)

    signature, oem, revision, length, xsdt = struct.unpack_from("<8sx6sB4xIQ", block)
    assert (signature, oem, revision, length) == (b"RSD PTR ", b"CLOUDH", 2, 36)
    assert xsdt == split(block)["XSDT"][0]
    assert sum(block[:20]) % 256 == 0
    assert sum(block[:36]) % 256 == 0


def test_tables_of_any_machine_follow_each_other_in_order_without_gaps() -> None:
    tables = split(build(MACHINE))

    assert list(tables) == ["DSDT", "FACP", "APIC", "MCFG", "XSDT"]
    assert tables["DSDT"][0] == RSDP_ADDRESS + 36
    for (address, content), (following, _) in pairwise(tables.values()):
        assert address + len(content) == following


@pytest.mark.parametrize(
    ("signature", "revision", "oem_table_id"),
    [
        ("DSDT", 6, b"CHDSDT  "),
        ("FACP", 6, b"CHFACP  "),
        ("APIC", 5, b"CHMADT  "),
        ("MCFG", 1, b"CHMCFG  "),
        ("XSDT", 1, b"CHXSDT  "),
    ],
)
def test_header_of_each_table_checks(signature: str, revision: int, oem_table_id: bytes) -> None:
    content = table(MACHINE, signature)

    assert struct.unpack_from("<8xBx6s8s", content) == (revision, b"CLOUDH", oem_table_id)
    assert sum(content) % 256 == 0


def test_xsdt_lists_every_table_but_the_dsdt() -> None:
    tables = split(build(MACHINE))

    assert struct.unpack_from("<3Q", tables["XSDT"][1], 36) == (
        tables["FACP"][0],
        tables["APIC"][0],
        tables["MCFG"][0],
    )
    assert len(tables["XSDT"][1]) == 36 + 3 * 8


def test_facp_describes_a_hardware_reduced_machine() -> None:
    facp = table(MACHINE, "FACP")

    assert len(facp) == 276
    assert struct.unpack_from("<I", facp, 112) == (1 << 8 | 1 << 10 | 1 << 20,)
    assert struct.unpack_from("<BBBBQB", facp, 116) == (1, 8, 0, 1, 0x600, 1)
    assert facp[131] == 3
    assert struct.unpack_from("<Q", facp, 140) == (RSDP_ADDRESS + 36,)
    assert struct.unpack_from("<BBBBQ", facp, 208) == (1, 32, 0, 3, 0x608)
    assert facp[244:256] == facp[256:268] == struct.pack("<BBBBQ", 1, 8, 0, 1, 0x600)
    assert facp[268:] == b"CLOUDHYP"


def test_facp_without_pm1_blocks_leaves_them_zero() -> None:
    facp = table(MACHINE, "FACP")

    assert not any(facp[36:112])
    assert not any(facp[148:208])


def test_facp_with_pm1_blocks_advertises_them_in_both_forms() -> None:
    facp = table(MACHINE._replace(has_pm1_blocks=True), "FACP")

    assert struct.unpack_from("<I4xI", facp, 56) == (0x60C, 0x610)
    assert (facp[88], facp[89]) == (4, 2)
    assert struct.unpack_from("<BBBBQ", facp, 148) == (1, 32, 0, 3, 0x60C)
    assert struct.unpack_from("<BBBBQ", facp, 172) == (1, 16, 0, 2, 0x610)


def test_madt_lists_every_possible_vcpu_and_enables_those_of_the_boot() -> None:
    madt = table(MACHINE, "APIC")

    assert struct.unpack_from("<II", madt, 36) == (0xFEE0_0000, 0)
    entries = [struct.unpack_from("<BBHIII", madt, 44 + 16 * index) for index in range(4)]
    assert entries == [
        (9, 16, 0, 0, 3, 0),
        (9, 16, 0, 1, 3, 1),
        (9, 16, 0, 2, 2, 2),
        (9, 16, 0, 0x1234, 2, 3),
    ]
    assert struct.unpack_from("<BBBBII", madt, 108) == (1, 12, 0, 0, 0xFEC0_0000, 0)
    assert struct.unpack_from("<BBBBIH", madt, 120) == (2, 10, 0, 4, 4, 0)
    assert len(madt) == 130


def test_mcfg_has_one_entry_a_segment() -> None:
    mcfg = table(MACHINE, "MCFG")

    assert struct.unpack_from("<8xQHBBI", mcfg, 36) == (0xE800_0000, 0, 0, 0, 0)
    assert struct.unpack_from("<QHBBI", mcfg, 60) == (0xE8A0_0000, 10, 0, 0, 0)
    assert len(mcfg) == 76


def test_dsdt_without_serial_has_no_com1() -> None:
    assert b"COM1" in table(MACHINE, "DSDT")
    assert b"COM1" not in table(MACHINE._replace(has_serial=False), "DSDT")


def test_dsdt_without_a_32_bit_window_leaves_it_out() -> None:
    windowless = SEGMENT_0._replace(mmio32=Span(0, 0))

    whole = table(MACHINE, "DSDT")
    less = table(MACHINE._replace(segments=(windowless, SEGMENT_10)), "DSDT")

    assert struct.pack("<II", 0xC000_0000, 0xE7FF_FFFF) in whole
    assert len(whole) - len(less) == 26


def test_build_with_the_most_vcpus_stays_below_smbios() -> None:
    block = build(MACHINE._replace(apic_ids=tuple(range(8192))))

    assert RSDP_ADDRESS + len(block) <= LIMIT_ADDRESS


def test_build_with_the_most_segments_stays_below_smbios() -> None:
    block = build(MACHINE._replace(segments=(SEGMENT_0,) * 96, apic_ids=tuple(range(4096))))

    assert RSDP_ADDRESS + len(block) <= LIMIT_ADDRESS


def test_build_with_more_than_fits_is_refused_with_the_limit() -> None:
    with pytest.raises(ConfigError, match="of the 327680 there are"):
        build(MACHINE._replace(apic_ids=tuple(range(20480))))


def compile_again(directory: Path, name: str, content: bytes) -> bytes:
    """Disassemble a table and compile the text; fail on any error or warning."""
    binary = directory / f"{name}.dat"
    binary.write_bytes(content)
    subprocess.run(["iasl", "-d", binary], check=True, capture_output=True)
    text = binary.with_suffix(".dsl")
    done = subprocess.run(["iasl", "-oa", text], capture_output=True, text=True)
    assert " 0 Errors, 0 Warnings" in done.stdout, done.stdout + done.stderr
    return text.with_suffix(".aml").read_bytes()


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl is missing; install acpica-tools")
@pytest.mark.parametrize("signature", ["DSDT", "FACP", "MCFG", "XSDT"])
def test_table_disassembled_and_compiled_is_the_same(signature: str, tmp_path: Path) -> None:
    content = table(MACHINE._replace(has_pm1_blocks=True), signature)

    again = compile_again(tmp_path, signature.lower(), content)

    # The compiler puts its own creator, and so another checksum, in the header.
    assert again[36:].hex() == content[36:].hex()


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl is missing; install acpica-tools")
def test_madt_disassembled_and_compiled_keeps_all_the_compiler_knows(tmp_path: Path) -> None:
    content = table(MACHINE, "APIC")

    again = compile_again(tmp_path, "apic", content)

    # Compilers before ACPI 6.3 drop the online-capable flag of a vCPU, so leave it out.
    known = bytearray(content)
    for index in range(len(MACHINE.apic_ids)):
        known[44 + 16 * index + 8] &= 1
    assert again[36:] in (content[36:], known[36:])


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl is missing; install acpica-tools")
def test_dsdt_disassembled_names_what_the_guest_needs(tmp_path: Path) -> None:
    compile_again(tmp_path, "dsdt", table(MACHINE, "DSDT"))

    text = (tmp_path / "dsdt.dsl").read_text()
    words = " ".join(text.split())
    assert r"If ((Local0 & 0x08)) { Notify (\_SB.PWRB, 0x80)" in words
    assert "Package (0x04) { 0x0009FFFF, Zero, Zero, 0x06 }" in words
    assert r"If ((Local0 & 0x04)) { \_SB.PHPR.PSCN () }" in words
    assert "If ((Arg0 & 0x80000000)) { Notify (S031, Arg1) }" in words
    assert words.count("Device (S000)") == 1, "the host bridge's slot is none to eject from"
    scanned = (
        r"Acquire (\_SB.PHPR.BLCK, 0xFFFF) \_SB.PHPR.PSEG = 0x0A "
        r"DVNT (\_SB.PHPR.PCIU, One) DVNT (\_SB.PHPR.PCID, 0x03) Release (\_SB.PHPR.BLCK)"
    )
    assert scanned in words
    assert r"If ((Local0 & One)) { \_SB.CPUS.CSCN () }" in words
    assert r"If ((Arg0 == 0x03)) { Notify (C003, Arg1) }" in words
    noticed = r"If (\_SB.PRES.CRMV) { CTFY (Local0, 0x03) \_SB.PRES.CRMV = One }"
    assert noticed in words
    assert words.count("Method (_EJ0, 1, NotSerialized)") == 31 + 32 + 3
    assert r"Method (PCEJ, 1, NotSerialized) { \_SB.PHPR.PCEJ (Arg0, 0x0A) }" in words
    for expected in (
        "Device (PC00)",
        "Device (PC0A)",
        'Name (_HID, EisaId ("PNP0A08")',
        "Device (MBRD)",
        "Device (RTC)",
        'Name (_HID, EisaId ("PNP0B00")',
        "Device (COM1)",
        "Device (PWRB)",
        "Device (PHPR)",
        "Device (CPUS)",
        "Device (C003)",
        "OperationRegion (PRST, SystemMemory, 0x00003FFFFFFEE000, 0x0C)",
        r"\_SB.PC0A.PCNT ()",
        "OperationRegion (PCST, SystemMemory, 0x00003FFFFFFEF000, 0x10)",
        "Device (GEC)",
        "Device (GED)",
        "OperationRegion (GDST, SystemMemory, 0x00003FFFFFFED000, One)",
        r"\_SB.GEC.ESCN ()",
        r"Name (\_S5, Package (0x04)",
        'ToUUID ("e5c937d0-3553-4d7a-9117-ea4d19c3434d")',
    ):
        assert expected in text
