"""SMBIOS and MP tables, read back the way guests do."""

from __future__ import annotations

import struct
import uuid
from typing import NamedTuple

import pytest

from vmm.boot import layout
from vmm.boot.mptable import encode_mptable
from vmm.boot.smbios import SystemIdentity, encode_smbios, parse_uuid
from vmm.errors import ConfigError

FULL = SystemIdentity(
    manufacturer="Ämter & Co",
    product_name="Product",
    version="1.2",
    serial_number="S-3",
    uuid="00112233-4455-6677-8899-aabbccddeeff",
    sku_number="SKU-4",
    family="Family",
    chassis_asset_tag="Tag 5",
    oem_strings=("first", "second=2", "third"),
)


class Structure(NamedTuple):
    kind: int
    handle: int
    data: bytes
    strings: list[str]

    def text(self, offset: int) -> str | None:
        """The string that the byte at an offset refers to."""
        number = self.data[offset]
        return self.strings[number - 1] if number else None


def parse(blob: bytes, address: int = layout.SMBIOS) -> dict[int, Structure]:
    """Check the entry point and walk the tables, as dmidecode does."""
    assert blob[:5] == b"_SM3_"
    assert blob[6] == 24
    assert sum(blob[:24]) & 0xFF == 0
    size, start = struct.unpack_from("<IQ", blob, 12)
    tables = blob[start - address :]
    assert len(tables) == size
    found: dict[int, Structure] = {}
    at = 0
    while at < size:
        kind, length, handle = struct.unpack_from("<BBH", tables, at)
        end = tables.index(b"\0\0", at + length)
        raw = tables[at + length : end]
        strings = [text.decode() for text in raw.split(b"\0")] if raw else []
        found[kind] = Structure(kind, handle, tables[at : at + length], strings)
        at = end + 2
    assert at == size
    assert kind == 127
    assert len({structure.handle for structure in found.values()}) == len(found)
    return found


def test_smbios_by_default_has_the_names_guests_expect() -> None:
    found = parse(encode_smbios(SystemIdentity()))

    assert list(found) == [0, 1, 127]
    system = found[1]
    assert len(system.data) == 27
    assert system.strings == ["Cloud Hypervisor", "cloud-hypervisor"]
    assert (system.text(4), system.text(5)) == ("Cloud Hypervisor", "cloud-hypervisor")
    assert [system.data[offset] for offset in (6, 7, 25, 26)] == [0, 0, 0, 0]
    assert system.data[8:24] == bytes(16)
    assert system.data[24] == 2


def test_smbios_reports_version_3_2_0() -> None:
    blob = encode_smbios(SystemIdentity())

    assert tuple(blob[7:11]) == (3, 2, 0, 1)


def test_smbios_bios_says_that_this_is_a_virtual_machine_with_pci() -> None:
    bios = parse(encode_smbios(SystemIdentity()))[0]

    assert (bios.text(4), bios.text(5)) == ("cloud-hypervisor", "0")
    assert len(bios.data) == 24
    assert struct.unpack_from("<Q", bios.data, 10) == (1 << 7,)
    assert bios.data[19] == 1 << 4


def test_smbios_of_a_full_platform_has_every_field_in_its_place() -> None:
    found = parse(encode_smbios(FULL))

    assert list(found) == [0, 1, 3, 11, 127]
    system = found[1]
    texts = [system.text(offset) for offset in (4, 5, 6, 7, 25, 26)]
    assert texts == ["Ämter & Co", "Product", "1.2", "S-3", "SKU-4", "Family"]
    assert FULL.uuid is not None
    assert system.data[8:24] == uuid.UUID(FULL.uuid).bytes_le
    assert (found[3].data[5], found[3].text(8)) == (2, "Tag 5")
    assert found[11].data[4:] == b"\3"
    assert found[11].strings == ["first", "second=2", "third"]


def test_smbios_with_a_gap_between_texts_refers_to_the_right_ones() -> None:
    system = parse(encode_smbios(SystemIdentity(family="F")))[1]

    assert (system.text(6), system.text(26)) == (None, "F")


@pytest.mark.parametrize(
    "text",
    [
        "00112233-4455-6677-8899-aabbccddeeff",
        "00112233445566778899AABBCCDDEEFF",
        "{00112233-4455-6677-8899-aabbccddeeff}",
        "urn:uuid:00112233-4455-6677-8899-aabbccddeeff",
    ],
)
def test_uuid_in_any_usual_form_is_read(text: str) -> None:
    assert parse_uuid(text).hex() == "33221100554477668899aabbccddeeff"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nil",
        "00112233-4455-6677-8899-aabbccddeefg",
        "0011-22334455-6677-8899-aabbccddeeff",
        "00112233445566778899aabbccddeeff00",
        "00112233-4455-6677-8899-aabbccddee①f",
    ],
)
def test_uuid_that_is_none_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ConfigError, match=r"platform\.system_uuid.*not a UUID; write it as"):
        encode_smbios(SystemIdentity(uuid=text))


@pytest.mark.parametrize(
    ("identity", "shown"),
    [
        (SystemIdentity(serial_number="a\0b"), "system_serial_number .* NUL at byte 1"),
        (SystemIdentity(family="\udc80"), "system_family .* lone surrogate"),
        (SystemIdentity(oem_strings=("a", "")), r"oem_strings\[1\] .* is empty"),
        (SystemIdentity(oem_strings=("a",) * 256), "256 entries and 255 is the limit"),
        (SystemIdentity(version="v" * 0x10000), r"tables of 65\d+ bytes and 65512 is the limit"),
    ],
)
def test_smbios_of_texts_that_cannot_be_told_says_which(
    identity: SystemIdentity, shown: str
) -> None:
    with pytest.raises(ConfigError, match=shown):
        encode_smbios(identity)


class MpEntry(NamedTuple):
    kind: int
    data: bytes


def parse_mp(blob: bytes, address: int) -> list[MpEntry]:
    """Check pointer and header, and cut the entries apart."""
    assert blob[:4] == b"_MP_"
    assert (blob[8], blob[9]) == (1, 4)
    assert sum(blob[:16]) & 0xFF == 0
    (start,) = struct.unpack_from("<I", blob, 4)
    table = blob[start - address :]
    assert table[:4] == b"PCMP"
    (length, count) = (*struct.unpack_from("<H", table, 4), *struct.unpack_from("<H", table, 34))
    assert length == len(table)
    assert sum(table) & 0xFF == 0
    assert table[8:28] == b"FC      000000000000"
    assert struct.unpack_from("<I", table, 36) == (0xFEE00000,)
    entries: list[MpEntry] = []
    at = 44
    while at < length:
        size = 20 if table[at] == 0 else 8
        entries.append(MpEntry(table[at], table[at : at + size]))
        at += size
    assert (at, len(entries)) == (length, count)
    return entries


def test_mptable_lists_processors_the_ioapic_and_interrupts() -> None:
    blob = encode_mptable((0, 1, 4), 0xF0200)

    assert blob is not None
    entries = parse_mp(blob, 0xF0200)
    processors = [entry.data for entry in entries if entry.kind == 0]
    assert [(data[1], data[3]) for data in processors] == [(0, 3), (1, 1), (4, 1)]
    assert [entry.data[2:] for entry in entries if entry.kind == 1] == [b"ISA   "]
    ioapics = [entry.data for entry in entries if entry.kind == 2]
    assert [(data[1], data[3:]) for data in ioapics] == [(255, b"\1\0\0\xc0\xfe")]
    interrupts = [entry.data for entry in entries if entry.kind == 3]
    assert [(data[5], data[6], data[7]) for data in interrupts] == [(n, 255, n) for n in range(16)]
    local = [(entry.data[1], entry.data[6], entry.data[7]) for entry in entries if entry.kind == 4]
    assert local == [(3, 0, 0), (1, 255, 1)]


def test_mptable_with_an_id_too_wide_is_left_out() -> None:
    assert encode_mptable((0, 253), 0xF0200) is not None
    assert encode_mptable((0, 254), 0xF0200) is None


def test_mptable_without_room_below_1_mib_is_left_out() -> None:
    size = len(encode_mptable((0,), 0xF0200) or b"")

    assert encode_mptable((0,), 0x100000 - size) is not None
    assert encode_mptable((0,), 0x100000 - size + 16) is None
