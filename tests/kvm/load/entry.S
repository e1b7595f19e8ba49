/*
 * From a PVH entry (32-bit protected mode, paging off) to C in 64-bit user mode.
 *
 * The program runs at CPL 3 because that is native even where a host's KVM emulates guest kernel code,
 * as a nested one may. The first 4 GiB are mapped one to one for it, and a task state segment whose I/O
 * bitmap is zero opens it every port. Interrupts stay off: it polls.
 *
 * What it can only do at CPL 0 it asks for by a fault: a hlt there raises #GP, and halts for ever.
 */
#define KERNEL_CODE 0x08
#define KERNEL_DATA 0x10
#define USER_DATA 0x1b
#define USER_CODE 0x23
#define TASK 0x28

#define PAGE_USER 0x7   /* present, writable, user */
#define LARGE_USER 0x87 /* the same, 2 MiB */
#define EFER 0xc0000080
#define HLT 0xf4
#define IO_BITMAP 0x68
#define IO_BITMAP_BYTES 0x2000
#define VECTORS 32
#define STUB_BYTES 16

    .section .note.pvh, "a", @note
    .long 4, 8, 18 /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad entry

    .text
    .code32
    .globl entry
entry:
    cld
    mov %ebx, start_info
    mov $directories, %edi
    mov $LARGE_USER, %eax
1:  mov %eax, (%edi)
    add $8, %edi
    add $0x200000, %eax
    jnc 1b

    mov $pointers, %edi
    mov $directories + PAGE_USER, %eax
    mov $4, %ecx
1:  mov %eax, (%edi)
    add $8, %edi
    add $0x1000, %eax
    loop 1b
    movl $pointers + PAGE_USER, map

    mov $idt, %edi
    mov $stubs, %eax
    mov $VECTORS, %ecx
1:  mov %ax, (%edi)
    movw $KERNEL_CODE, 2(%edi)
    movw $0x8e00, 4(%edi) /* interrupt gate */
    mov %eax, %edx
    shr $16, %edx
    mov %dx, 6(%edi)
    add $16, %edi
    add $STUB_BYTES, %eax
    loop 1b

    mov $task, %eax
    mov %ax, task_descriptor + 2
    shr $16, %eax
    mov %al, task_descriptor + 4
    mov %ah, task_descriptor + 7

    mov %cr4, %eax
    or $1 << 5, %eax /* PAE */
    mov %eax, %cr4
    mov $map, %eax
    mov %eax, %cr3
    mov $EFER, %ecx
    rdmsr
    or $1 << 8, %eax /* LME */
    wrmsr
    mov %cr0, %eax
    or $1 << 31, %eax
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $KERNEL_CODE, $long_mode

    .code64
long_mode:
    mov $KERNEL_DATA, %eax
    mov %eax, %ss
    mov $USER_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    lidt idt_pointer
    mov $TASK, %eax
    ltr %ax
    mov $kernel_stack, %esp
    mov start_info, %edi
    push $USER_DATA
    push $user_stack - 8 /* as a call would leave it */
    push $2
    push $USER_CODE
    push $run
    iretq

    .balign STUB_BYTES
stubs:
    .set vector, 0
    .rept VECTORS
    .balign STUB_BYTES
    mov $vector, %edi
    jmp fault
    .set vector, vector + 1
    .endr

/* #GP has an error code above the address; what else faults has a bug, and is shown as well as it goes. */
fault:
    mov (%rsp), %rsi
    mov 8(%rsp), %rdx
    cmp $13, %edi
    jne 1f
    cmpb $HLT, (%rdx)
    je 2f
1:  call report_fault
2:  cli
    hlt
    jmp 2b

    .data
    .balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00cff3000000ffff
    .quad 0x00affb000000ffff
task_descriptor:
    .quad 0x0000890000000000 + IO_BITMAP + IO_BITMAP_BYTES
    .quad 0
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
idt_pointer:
    .word 16 * VECTORS - 1
    .quad idt

    .balign 16
task:
    .long 0
    .quad kernel_stack
    .zero IO_BITMAP - 12 - 2
    .word IO_BITMAP
    .zero IO_BITMAP_BYTES
    .byte 0xff

    .bss
    .balign 4096
map:
    .skip 4096
pointers:
    .skip 4096
directories:
    .skip 4 * 4096
idt:
    .skip 16 * VECTORS
    .skip 4096
kernel_stack:
    .skip 16384
user_stack:
    .globl start_info
start_info:
    .skip 8

    .section .note.GNU-stack, "", @progbits
