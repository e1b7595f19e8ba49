"""The AML encoder: known encodings, refusals, and the compiler's opinion of every term."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vmm.acpi import aml
from vmm.acpi import resources as res
from vmm.errors import InternalError

HEADER_SIZE = 36


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (1, "01"),
        (2, "0a02"),
        (0xFF, "0aff"),
        (0x100, "0b0001"),
        (0x10000, "0c00000100"),
        (1 << 32, "0e0000000001000000"),
        ((1 << 64) - 1, "ff"),
    ],
)
def test_integer_any_value_is_encoded_in_its_shortest_form(value: int, encoded: str) -> None:
    assert aml.integer(value).hex() == encoded


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("GDAT", b"GDAT"),
        ("GEC", b"GEC_"),
        (r"\_SB", b"\\_SB_"),
        (r"\_SB.PC00", b"\\\x2e_SB_PC00"),
        ("^^PC00", b"^^PC00"),
        (r"\_SB.PC00.S001", b"\\\x2f\x03_SB_PC00S001"),
    ],
)
def test_path_any_depth_is_encoded(text: str, encoded: bytes) -> None:
    assert aml.path(text) == encoded


@pytest.mark.parametrize("text", ["", "TOOLONG", "ab", "0ABC", "A.", "A..B", "Ä", "A-B", r"A\B"])
def test_path_that_aml_cannot_express_is_refused(text: str) -> None:
    with pytest.raises(InternalError, match="segment"):
        aml.path(text)


def test_path_of_too_many_segments_is_refused() -> None:
    with pytest.raises(InternalError, match="limit is 255"):
        aml.path(".".join(["A"] * 256))


def test_eisa_id_is_compressed_big_endian() -> None:
    assert aml.eisa_id("PNP0A08").hex() == "0c41d00a08"


@pytest.mark.parametrize("text", ["PNP0A0", "pnp0A08", "PNP0A0G", "PN10A08", "PNP0a08"])
def test_eisa_id_of_wrong_shape_is_refused(text: str) -> None:
    with pytest.raises(InternalError, match="EISA"):
        aml.eisa_id(text)


def test_uuid_has_its_first_three_parts_swapped() -> None:
    encoded = aml.uuid("00112233-4455-6677-8899-aabbccddeeff")

    assert encoded[-16:].hex() == "33221100554477668899aabbccddeeff"


def test_field_whose_offset_goes_back_is_refused() -> None:
    with pytest.raises(InternalError, match="lies before"):
        aml.field("REGS", aml.Access.BYTE, aml.Bits("AAAA", 9), aml.Offset(1))


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_integer_out_of_range_is_refused(value: int) -> None:
    with pytest.raises(InternalError, match="integer"):
        aml.integer(value)


def test_string_that_is_not_ascii_is_refused() -> None:
    with pytest.raises(InternalError, match="string"):
        aml.string("é")


def test_package_of_too_many_elements_is_refused() -> None:
    with pytest.raises(InternalError, match="limit is 255"):
        aml.package(*range(256))


EVERY_TERM_ASL = r"""
DefinitionBlock ("", "DSDT", 6, "CLOUDH", "TEST", 1)
{
    Scope (\_SB)
    {
        Device (DEV0)
        {
            Name (_HID, EisaId ("PNP0A06"))
            Name (_UID, "Controller")
            Name (WIDE, 0x123456789ABCDEF0)
            Name (BLOB, Buffer () {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16})
            Name (_CRS, ResourceTemplate ()
            {
                WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, 0, 255, 0, 256)
                Memory32Fixed (ReadWrite, 0xE8000000, 0x00100000)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable,
                    ReadWrite, 0, 0xC0000000, 0xE7FFFFFF, 0, 0x28000000)
                QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable,
                    ReadWrite, 0, 0x100000000, 0x1FFFFFFFF, 0, 0x100000000)
                IO (Decode16, 0xCF8, 0xCF8, 1, 8)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,
                    0, 0x0D00, 0xFFFF, 0, 0xF300)
                Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) {13}
            })
            Mutex (MUTX, 3)
            OperationRegion (REGS, SystemMemory, 0x3FFFFFE0000, 0x10)
            Field (REGS, DWordAcc, Lock, WriteAsZeros)
            {
                SLCT, 32,
                ENAB, 1,
                Offset (8),
                LONG, 64
            }
            OperationRegion (PRTS, SystemIO, 0x600, 8)
            Field (PRTS, ByteAcc, NoLock, Preserve) {BYTE, 8}
            Method (SCAN, 2, Serialized)
            {
                Acquire (MUTX, 0xFFFF)
                Store (Zero, Local0)
                While (LLess (Local0, 32))
                {
                    If (And (ShiftLeft (One, Local0), Arg0)) {Notify (\_SB.DEV0, Local0)}
                    Else {Store (ENAB, Local1)}
                    If (LGreater (Local1, 3)) {Break}
                    If (LNot (Local1)) {Increment (Local0)}
                    Add (Local0, One, Local0)
                    Subtract (Local0, ShiftRight (Arg1, 4), Local2)
                    Or (Local2, Ones, SLCT)
                }
                Release (MUTX)
                CreateDWordField (BLOB, 4, FOUR)
                CreateQWordField (BLOB, 8, EIGH)
                Store (Arg1, Index (BLOB, 2))
                Store (DeRefOf (Index (BLOB, 3)), EIGH)
                Store (SizeOf (BLOB), FOUR)
                If (LEqual (Arg0, ToUUID ("e5c937d0-3553-4d7a-9117-ea4d19c3434d")))
                {
                    Return (SCAN (One, 0x1234))
                }
                Return (Package () {One, "text", 0x12345678, Package () {Zero}})
            }
        }
    }
}
"""


def every_term() -> bytes:
    zero, one = aml.local(0), aml.local(1)
    blob, lock = aml.path("BLOB"), aml.path("MUTX")
    is_notified = aml.and_(aml.shift_left(1, zero), aml.argument(0))
    scan = aml.method(
        "SCAN",
        2,
        aml.acquire(lock),
        aml.store(0, zero),
        aml.while_(
            aml.less(zero, 32),
            aml.if_(is_notified, aml.notify(aml.path(r"\_SB.DEV0"), zero)),
            aml.else_(aml.store(aml.path("ENAB"), one)),
            aml.if_(aml.greater(one, 3), aml.BREAK),
            aml.if_(aml.not_(one), aml.increment(zero)),
            aml.add(zero, 1, zero),
            aml.subtract(zero, aml.shift_right(aml.argument(1), 4), aml.local(2)),
            aml.or_(aml.local(2), aml.ONES, aml.path("SLCT")),
        ),
        aml.release(lock),
        aml.create_dword_field(blob, 4, "FOUR"),
        aml.create_qword_field(blob, 8, "EIGH"),
        aml.store(aml.argument(1), aml.index(blob, 2)),
        aml.store(aml.dereference(aml.index(blob, 3)), aml.path("EIGH")),
        aml.store(aml.size_of(blob), aml.path("FOUR")),
        aml.if_(
            aml.equal(aml.argument(0), aml.uuid("e5c937d0-3553-4d7a-9117-ea4d19c3434d")),
            aml.return_(aml.call("SCAN", 1, 0x1234)),
        ),
        aml.return_(aml.package(1, "text", 0x12345678, aml.package(0))),
        serialized=True,
    )
    device = aml.device(
        "DEV0",
        aml.name("_HID", aml.eisa_id("PNP0A06")),
        aml.name("_UID", "Controller"),
        aml.name("WIDE", 0x123456789ABCDEF0),
        aml.name("BLOB", aml.buffer(bytes(range(1, 17)))),
        aml.name(
            "_CRS",
            res.resource_template(
                res.bus_numbers(0, 255),
                res.memory32_fixed(0xE8000000, 0x100000),
                res.dword_memory(0xC0000000, 0xE7FFFFFF),
                res.qword_memory(0x1_0000_0000, 0x1_FFFF_FFFF),
                res.io_ports(0xCF8, 8),
                res.word_io(0xD00, 0xFFFF),
                res.interrupt(13),
            ),
        ),
        aml.mutex("MUTX", 3),
        aml.operation_region("REGS", aml.AddressSpace.SYSTEM_MEMORY, 0x3FFFFFE0000, 0x10),
        aml.field(
            "REGS",
            aml.Access.DWORD,
            aml.Bits("SLCT", 32),
            aml.Bits("ENAB", 1),
            aml.Offset(8),
            aml.Bits("LONG", 64),
            locked=True,
            update=aml.Update.WRITE_AS_ZEROS,
        ),
        aml.operation_region("PRTS", aml.AddressSpace.SYSTEM_IO, 0x600, 8),
        aml.field("PRTS", aml.Access.BYTE, aml.Bits("BYTE", 8)),
        scan,
    )
    return aml.scope(r"\_SB", device)


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl is missing; install acpica-tools")
def test_every_term_is_the_compiler_s_own_encoding(tmp_path: Path) -> None:
    source = tmp_path / "every.asl"
    source.write_text(EVERY_TERM_ASL)

    # -oa keeps the terms as they are written; -f goes on after warnings about their sense.
    done = subprocess.run(["iasl", "-oa", "-f", source], capture_output=True, text=True)

    assert " 0 Errors" in done.stdout, done.stdout + done.stderr
    assert every_term().hex() == source.with_suffix(".aml").read_bytes()[HEADER_SIZE:].hex()
