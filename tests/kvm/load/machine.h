/* What a program without an operating system has: ports, memory, a clock, and a line to its host. */
#ifndef MACHINE_H
#define MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE_BYTES 4096u

static inline void out_8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port));
}

static inline uint8_t in_8(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void out_32(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port));
}

static inline uint32_t in_32(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint64_t cycles_now(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

static inline void relax(void)
{
    __asm__ volatile("pause" ::: "memory");
}

/* Halts the processor, and with it the guest. */
static inline void halt_for_ever(void)
{
    for (;;)
        __asm__ volatile("hlt");
}

static inline uint64_t address_of(const volatile void *object)
{
    return (uint64_t)(uintptr_t)object;
}

void *memset(void *to, int value, size_t bytes);
void *memcpy(void *to, const void *from, size_t bytes);

/* Zeroed memory, whole pages of it. It is never given back: a step makes its own. */
void *allocate(uint64_t bytes);

/* Forgets all that was allocated since `allocated` said where it ended. */
uint64_t allocated(void);
void forget(uint64_t since);

void say(const char *text);
void say_number(const char *name, uint64_t value); /* " name=value" */

/* Ends a program that cannot go on: says so, and halts. */
void fail(const char *text, uint64_t value);

#endif
