/* Memory, and what is written to the debug port. */
#include "machine.h"

#define DEBUG_PORT 0xe9
#define HEAP 0x1000000u /* above the program and whatever the loader put beside it */

static uint64_t heap_end = HEAP;

static uint64_t whole_pages(uint64_t bytes)
{
    return (bytes + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1);
}

void *memset(void *to, int value, size_t bytes)
{
    void *at = to;
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(bytes) : "a"(value) : "memory");
    return to;
}

void *memcpy(void *to, const void *from, size_t bytes)
{
    void *at = to;
    __asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(bytes)::"memory");
    return to;
}

void *allocate(uint64_t bytes)
{
    void *start = (void *)(uintptr_t)heap_end;
    heap_end += whole_pages(bytes);
    return memset(start, 0, whole_pages(bytes));
}

uint64_t allocated(void)
{
    return heap_end;
}

void forget(uint64_t since)
{
    heap_end = since;
}

void say(const char *text)
{
    while (*text != 0)
        out_8(DEBUG_PORT, (uint8_t)*text++);
}

void say_number(const char *name, uint64_t value)
{
    char digits[21];
    char *first = digits + sizeof digits - 1;
    *first = 0;
    do {
        *--first = (char)('0' + value % 10);
        value /= 10;
    } while (value != 0);
    say(" ");
    say(name);
    say("=");
    say(first);
}

void fail(const char *text, uint64_t value)
{
    say("failed: ");
    say(text);
    say_number("value", value);
    say("\n");
    halt_for_ever();
}

/* Called at CPL 0, by what is in entry.S. */
void report_fault(uint64_t vector, uint64_t top, uint64_t next)
{
    say("failed: the processor raised an exception;");
    say_number("vector", vector);
    say_number("top", top);
    say_number("next", next);
    say("\n");
}
