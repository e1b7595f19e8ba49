"""AML lengths and names, and tables of any machine, against decoders written for the test."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.acpi import aml
from vmm.acpi.machine import Machine, PciSegment
from vmm.acpi.tables import RSDP_ADDRESS, build
from vmm.pci.allocator import Span

# Where one more byte is needed, for a bare value and for one that counts its own bytes.
EDGES = [0, 1, 60, 61, 62, 63, 64, 4090, 4092, 4093, 4094, 4095, 4096, (1 << 20) - 4, 1 << 20]


def decode_length(encoded: bytes) -> tuple[int, int]:
    """Give the value of a PkgLength and how many bytes it takes."""
    following = encoded[0] >> 6
    if following == 0:
        return encoded[0] & 0x3F, 1
    high = int.from_bytes(encoded[1 : 1 + following], "little")
    return encoded[0] & 0xF | high << 4, 1 + following


def decode_integer(encoded: bytes) -> int:
    if encoded in (b"\x00", b"\x01"):
        return encoded[0]
    if encoded == b"\xff":
        return (1 << 64) - 1
    size = {0x0A: 1, 0x0B: 2, 0x0C: 4, 0x0E: 8}[encoded[0]]
    assert len(encoded) == 1 + size
    return int.from_bytes(encoded[1:], "little")


@given(st.integers(0, (1 << 28) - 1) | st.sampled_from(EDGES))
def test_length_decoded_is_the_value_in_the_fewest_bytes(value: int) -> None:
    encoded = aml.length(value)

    assert decode_length(encoded) == (value, len(encoded))
    fewest = next(
        n for n, limit in enumerate((1 << 6, 1 << 12, 1 << 20, 1 << 28), 1) if value < limit
    )
    assert len(encoded) == fewest


@given(st.integers(0, 5000) | st.sampled_from(EDGES))
def test_length_of_an_object_covers_itself_and_the_body(size: int) -> None:
    encoded = aml.while_(bytes(size))

    value, own = decode_length(encoded[1:])
    assert value == len(encoded) - 1
    assert own == len(encoded) - 1 - size


@given(st.integers(0, (1 << 64) - 1))
def test_integer_decoded_is_the_value(value: int) -> None:
    assert decode_integer(aml.integer(value)) == value


@given(st.from_regex(r"[A-Z_][A-Z0-9_]{0,3}(\.[A-Z_][A-Z0-9_]{0,3}){0,9}", fullmatch=True))
def test_path_decoded_is_the_name(text: str) -> None:
    encoded = aml.path(text)

    prefix = {1: b"", 2: b"\x2e"}.get(text.count(".") + 1, bytes((0x2F, text.count(".") + 1)))
    assert encoded.startswith(prefix)
    body = encoded.removeprefix(prefix).decode()
    segments = [body[at : at + 4] for at in range(0, len(body), 4)]
    assert segments == [segment.ljust(4, "_") for segment in text.split(".")]


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Draw machines with segments that have ECAM and windows where they can be."""
    ids = draw(st.lists(st.integers(0, 95), min_size=1, max_size=4, unique=True))
    segments = tuple(
        PciSegment(
            id=id,
            ecam=Span(0xE800_0000 + (id << 20), 1 << 20),
            mmio32=Span(0xC000_0000 + (at << 24), draw(st.integers(0, 1 << 12)) << 12),
            mmio64=Span((at + 1) << 40, draw(st.integers(1, 255)) << 32),
        )
        for at, id in enumerate(ids)
    )
    vcpus = draw(st.integers(1, 300))
    return Machine(
        apic_ids=tuple(range(vcpus)),
        boot_vcpus=draw(st.integers(1, vcpus)),
        segments=segments,
        ged_address=draw(st.integers(1 << 8, 1 << 34)) << 12,
        pci_hotplug_address=draw(st.integers(1 << 8, 1 << 34)) << 12,
        cpu_hotplug_address=draw(st.integers(1 << 8, 1 << 34)) << 12,
        has_serial=draw(st.booleans()),
        has_pm1_blocks=draw(st.booleans()),
    )


def tables_of(block: bytes) -> dict[bytes, tuple[int, bytes]]:
    tables = {}
    at = 36
    while at < len(block):
        size = int.from_bytes(block[at + 4 : at + 8], "little")
        tables[block[at : at + 4]] = (RSDP_ADDRESS + at, block[at : at + size])
        at += size
    return tables


@given(machines())
def test_tables_of_any_machine_check_and_are_all_reached(machine: Machine) -> None:
    tables = tables_of(build(machine))

    for address, content in tables.values():
        assert sum(content) % 256 == 0
        assert address + len(content) <= 0xF0000
    xsdt = tables.pop(b"XSDT")[1]
    reached = {int.from_bytes(xsdt[at : at + 8], "little") for at in range(36, len(xsdt), 8)}
    reached.add(int.from_bytes(tables[b"FACP"][1][140:148], "little"))
    assert reached == {address for address, _ in tables.values()}


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl is missing; install acpica-tools")
@settings(max_examples=10, deadline=None)
@given(machines())
def test_dsdt_of_any_machine_disassembled_and_compiled_is_the_same(machine: Machine) -> None:
    _, content = tables_of(build(machine))[b"DSDT"]

    with tempfile.TemporaryDirectory() as directory:
        binary = Path(directory, "dsdt.dat")
        binary.write_bytes(content)
        subprocess.run(["iasl", "-d", binary], check=True, capture_output=True)
        text = binary.with_suffix(".dsl")
        done = subprocess.run(["iasl", "-oa", text], capture_output=True, text=True)
        assert " 0 Errors" in done.stdout, done.stdout + done.stderr
        assert text.with_suffix(".aml").read_bytes()[36:] == content[36:]
