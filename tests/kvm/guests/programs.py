"""What tiny kernels are made of. Each piece is assembly text; none of them expects a register."""

from __future__ import annotations

from tests.kvm.guests.image import RESULTS, STACK, TABLES

SERIAL_PORT = 0x3F8
DEBUG_PORT = 0xE9
CMOS_DATA = 0x71

HALT = "cli; 9: hlt; jmp 9b"
SPIN = "9: jmp 9b"
ASK_THE_LOOP = f"mov ${CMOS_DATA}, %dx; 9: in %dx, %al; jmp 9b"
"""One exit to the loop after the other."""

POWER_OFF = f"mov $0x600, %dx; mov $0x34, %al; out %al, %dx; {HALT}"
RESET_BY = {
    "i8042": f"mov $0xfe, %al; out %al, $0x64; {HALT}",
    "acpi": f"mov $0x600, %dx; mov $1, %al; out %al, %dx; {HALT}",
    "cmos": f"mov $0x8f, %al; out %al, $0x70; xor %al, %al; out %al, $0x71; {HALT}",
    "triple fault": "ud2",
}
"""Every way to a reset."""

EMULATION_FAILURE = "mov $0xd0000000, %eax; jmp *%eax"
"""Instructions fetched where there is no memory: KVM can neither run nor emulate them."""

COUNT_AND_TELL = f"""
    9: incl {RESULTS}
    testl $0xfff, {RESULTS}
    jnz 9b
    mov $'.', %al
    out %al, ${DEBUG_PORT}
    jmp 9b
"""
"""Counts in memory for ever, and says so each time a few thousand are done."""


def say(text: str, port: int = DEBUG_PORT) -> str:
    """Write a text to a port, byte by byte."""
    bytes_ = (f"mov ${byte}, %al; out %al, %dx;" for byte in text.encode())
    return f"mov ${port}, %dx;" + "".join(bytes_)


def tell(register: str = "%eax") -> str:
    """Write a register's four bytes to the debug port, the lowest first."""
    shifts = f"out %al, ${DEBUG_PORT}; shr $8, %eax;" * 4
    return f"mov {register}, %eax; {shifts}" if register != "%eax" else shifts


def map_window(address: int) -> str:
    """Turn on paging as a 64-bit kernel does, but go on with 32-bit code.

    The first GiB, where the guest lies, stays as it is; WINDOW shows the 2 MiB around ``address``.
    """
    page = address & ~0x1F_FFFF
    pdpt, low, window = (TABLES + at for at in (0x1000, 0x2000, 0x3000))
    table, large = 0x3, 0x83  # present and writable; and 2 MiB
    return f"""
        movl ${pdpt | table}, {TABLES}
        movl ${low | table}, {pdpt}
        movl ${window | table}, {pdpt + 8}
        movl ${page & 0xFFFF_FFFF | large}, {window}
        movl ${page >> 32}, {window + 4}
        mov ${low}, %edi
        mov ${large}, %eax
        mov $512, %ecx
    8:  mov %eax, (%edi)
        add $0x200000, %eax
        add $8, %edi
        loop 8b
        mov ${TABLES}, %eax
        mov %eax, %cr3
        mov $0x20, %eax
        mov %eax, %cr4
        mov $0xc0000080, %ecx
        mov $0x100, %eax
        xor %edx, %edx
        wrmsr
        mov $0x80000001, %eax
        mov %eax, %cr0
    """


WINDOW = 0x4000_0000
"""Where ``map_window`` shows what it maps."""


def take_interrupt(vector: int, handler: str) -> str:
    """Load an interrupt table whose only gate leads to a label."""
    gate = TABLES + 0x5000 + 8 * vector
    pointer = TABLES + 0x6000
    return f"""
        mov ${STACK}, %esp
        mov ${handler}, %eax
        mov %ax, {gate}
        movw $8, {gate + 2}
        movw $0x8e00, {gate + 4}
        shr $16, %eax
        mov %ax, {gate + 6}
        movw $0x7ff, {pointer}
        movl ${TABLES + 0x5000}, {pointer + 2}
        lidt {pointer}
    """


def start_second_vcpu(page: int) -> str:
    """Send INIT and SIPI to the vCPU with APIC id 1; it starts in real mode at ``page``."""
    return f"""
        movl $0x1ff, 0xfee000f0
        movl $0x01000000, 0xfee00310
        movl $0x00004500, 0xfee00300
        movl $0x01000000, 0xfee00310
        movl ${0x4600 | page >> 12}, 0xfee00300
    """


def copy_code(begin: str, end: str, to: int) -> str:
    """Copy what lies between two labels to an address."""
    return f"mov ${begin}, %esi; mov ${to}, %edi; mov ${end} - {begin}, %ecx; cld; rep movsb;"


def let_through(pin: int, vector: int) -> str:
    """Turn the LAPIC on, and let a pin of the IOAPIC raise a vector on the first vCPU."""
    low = 0x10 + 2 * pin
    return f"""
        movl $0x1ff, 0xfee000f0
        movl ${low + 1}, 0xfec00000
        movl $0, 0xfec00010
        movl ${low}, 0xfec00000
        movl ${vector}, 0xfec00010
    """
