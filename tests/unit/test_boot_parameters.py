"""What a kernel finds at entry: start information, zero page, registers, MSRs, LAPIC."""

from __future__ import annotations

import struct

import pytest

from tests.unit.boot_images import FakeRam, as_file, make_bzimage
from vmm.boot.entry import KernelEntry
from vmm.boot.layout import GIB, MIB, RamRange, ram_ranges
from vmm.boot.loader import load_kernel
from vmm.boot.memmap import MapEntry, memory_map
from vmm.boot.msrs import BOOT_MSRS
from vmm.boot.pvh import encode_memory_map, encode_module_list, encode_start_info
from vmm.boot.registers import GDT, IDT, configure_lapic, initial_regs, initial_sregs
from vmm.boot.zero_page import encode_zero_page
from vmm.errors import InternalError
from vmm.kvm_cffi.structs import DescriptorTable, Segment, Sregs

INITRAMFS = RamRange(0x3F00000, 0x12345)
PVH = KernelEntry("pvh", 0x1000A30, 32 * MIB)


def u32(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")


def u64(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 8], "little")


def test_start_info_with_an_initramfs_points_at_everything() -> None:
    info = encode_start_info(INITRAMFS, 5)

    assert len(info) == 56
    assert (u32(info, 0), u32(info, 4), u32(info, 8)) == (0x336EC578, 1, 0)
    assert (u32(info, 12), u64(info, 16)) == (1, 0x6040)
    assert (u64(info, 24), u64(info, 32)) == (0x20000, 0xA0000)
    assert (u64(info, 40), u32(info, 48), u32(info, 52)) == (0x7000, 5, 0)


def test_start_info_without_an_initramfs_has_no_modules() -> None:
    info = encode_start_info(None, 3)

    assert (u32(info, 12), u64(info, 16)) == (0, 0)


def test_module_list_holds_the_initramfs() -> None:
    assert encode_module_list(INITRAMFS) == struct.pack("<QQQQ", 0x3F00000, 0x12345, 0, 0)


def test_pvh_memory_map_has_entries_of_24_bytes() -> None:
    data = encode_memory_map(memory_map(ram_ranges(5 * GIB)))

    assert len(data) == 4 * 24
    assert (u64(data, 0), u64(data, 8), u32(data, 16), u32(data, 20)) == (0, 0xA0000, 1, 0)
    assert (u64(data, 72), u64(data, 80), u32(data, 88)) == (0xE8000000, 0x10000000, 2)


def test_zero_page_carries_the_setup_header_and_what_the_loader_adds() -> None:
    image = make_bzimage(code32_start=2 * MIB)
    entry = load_kernel(FakeRam(), as_file(image))

    page = encode_zero_page(entry, INITRAMFS, memory_map(ram_ranges(5 * GIB)))

    assert len(page) == 4096
    assert page[0x202:0x208] == image[0x202:0x208]
    assert page[0x210] == 0xFF
    assert u32(page, 0x214) == 2 * MIB
    assert (u32(page, 0x218), u32(page, 0x21C)) == INITRAMFS
    assert u32(page, 0x228) == 0x20000
    assert u64(page, 0x70) == 0xA0000
    assert page[0x1EF] == 0, "a kernel distrusts a page whose sentinel is set"


def test_zero_page_has_the_memory_map_in_entries_of_20_bytes() -> None:
    entry = load_kernel(FakeRam(), as_file(make_bzimage()))

    page = encode_zero_page(entry, None, memory_map(ram_ranges(5 * GIB)))

    assert page[0x1E8] == 4
    found = [struct.unpack_from("<QQI", page, 0x2D0 + 20 * index) for index in range(4)]
    assert found == memory_map(ram_ranges(5 * GIB))
    assert not any(page[0x2D0 + 80 :])
    assert (u32(page, 0x218), u32(page, 0x21C)) == (0, 0)


def test_zero_page_keeps_a_loader_type_that_is_set() -> None:
    image = bytearray(make_bzimage())
    image[0x210] = 0xB0
    entry = load_kernel(FakeRam(), as_file(bytes(image)))

    assert encode_zero_page(entry, None, [])[0x210] == 0xB0


def test_zero_page_with_more_entries_than_it_holds_is_our_own_fault() -> None:
    with pytest.raises(InternalError, match="129 entries"):
        encode_zero_page(PVH, None, [MapEntry(0, 1, 1)] * 129)


def test_gdt_and_idt_are_those_the_registers_refer_to() -> None:
    values = struct.unpack("<4Q", GDT)

    assert values == (0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00008B0000000067)
    assert not any(IDT)
    assert len(IDT) == 8


def test_sregs_are_flat_protected_mode_without_paging() -> None:
    template = Sregs(cr0=0x60000010, cr4=0x20, efer=0x500, apic_base=0xFEE00900, cr3=7)

    sregs = initial_sregs(template)

    flat = {"base": 0, "limit": 0xFFFFFFFF, "present": 1, "db": 1, "s": 1, "g": 1}
    data = Segment(**flat, selector=0x10, type=3)
    assert sregs.cs == Segment(**flat, selector=8, type=0xB)
    assert [sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss] == [data] * 5
    assert sregs.tr == Segment(base=0, limit=0x67, selector=0x18, type=0xB, present=1)
    assert sregs.gdt == DescriptorTable(0x500, 31)
    assert sregs.idt == DescriptorTable(0x520, 7)
    assert (sregs.cr0, sregs.cr4) == (1, 0)
    assert (sregs.efer, sregs.apic_base, sregs.cr3) == (0x500, 0xFEE00900, 7)


def test_sregs_leave_their_template_as_it_was() -> None:
    template = Sregs(cr0=0x60000010)

    initial_sregs(template)

    assert template == Sregs(cr0=0x60000010)


def test_sregs_with_wide_apic_ids_turn_x2apic_on() -> None:
    assert initial_sregs(Sregs(apic_base=0xFEE00900), x2apic=True).apic_base == 0xFEE00D00


def test_regs_of_a_pvh_kernel_point_at_the_start_info() -> None:
    regs = initial_regs(PVH)

    assert (regs.rip, regs.rbx, regs.rflags, regs.rsi, regs.rsp) == (0x1000A30, 0x6000, 2, 0, 0)


def test_regs_of_a_bzimage_point_at_the_zero_page() -> None:
    regs = initial_regs(KernelEntry("bzimage", MIB, 2 * MIB))

    assert (regs.rip, regs.rsi, regs.rsp, regs.rflags) == (MIB, 0x7000, 0x8FF0, 2)
    assert (regs.rbx, regs.rbp, regs.rdi) == (0, 0, 0)


def test_lapic_pins_get_their_modes_and_keep_their_masks() -> None:
    page = bytearray(1024)
    struct.pack_into("<I", page, 0x350, 0x10000)
    struct.pack_into("<I", page, 0x360, 0x10000 | 0x300)
    page[0x20] = 0x55

    patched = configure_lapic(bytes(page))

    assert u32(patched, 0x350) == 0x10700
    assert u32(patched, 0x360) == 0x10400
    assert patched[0x20] == 0x55
    assert len(patched) == 1024


def test_boot_msrs_turn_fast_strings_and_write_back_on_and_clear_the_rest() -> None:
    values = dict(BOOT_MSRS)

    assert values.pop(0x1A0) == 1
    assert values.pop(0x2FF) == 0x806
    zeroed = {0x10, 0x174, 0x175, 0x176, *range(0xC0000081, 0xC0000085), 0xC0000102}
    assert values == dict.fromkeys(zeroed, 0)
