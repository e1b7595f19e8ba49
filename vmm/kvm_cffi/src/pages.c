/* Bitmaps of pages: how many, which are not empty, and where they are. */
#include "kvm_cffi.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define PAGE_BYTES 4096u
#define WORD_BITS 64u

uint64_t vk_pages_count(const uint64_t *bitmap, uint64_t words)
{
    uint64_t count = 0;
    for (uint64_t i = 0; i < words; i++)
        count += (uint64_t)__builtin_popcountll(bitmap[i]);
    return count;
}

/* The first words decide for nearly every page that holds something. */
static bool is_zero(const uint8_t *page)
{
    uint64_t head[8];
    memcpy(head, page, sizeof head);
    for (uint32_t i = 0; i < 8; i++)
        if (head[i] != 0)
            return false;
    return memcmp(page, page + sizeof head, PAGE_BYTES - sizeof head) == 0;
}

void vk_pages_drop_zeros(uint64_t *bitmap, const uint8_t *page_0, uint64_t first, uint64_t count)
{
    for (uint64_t page = first; page < first + count; page++) {
        uint64_t bit = (uint64_t)1 << page % WORD_BITS;
        uint64_t *word = &bitmap[page / WORD_BITS];
        if ((*word & bit) != 0 && is_zero(page_0 + page * PAGE_BYTES))
            *word &= ~bit;
    }
}

/* Source: Linux Documentation/admin-guide/mm/pagemap.rst: bit 63 present, bit 62 swapped. */
int vk_pages_drop_untouched(uint64_t *bitmap, uint64_t hva, uint64_t first, uint64_t count,
                            int pagemap_fd)
{
    uint64_t entries[512];
    for (uint64_t page = first; page < first + count;) {
        uint64_t left = first + count - page, asked = left < 512 ? left : 512;
        off_t at = (off_t)((hva / PAGE_BYTES + page) * sizeof entries[0]);
        ssize_t got = pread(pagemap_fd, entries, asked * sizeof entries[0], at);
        if (got <= 0)
            return got < 0 ? -errno : -EIO;
        for (uint64_t i = 0; i < (uint64_t)got / sizeof entries[0]; i++, page++)
            if (entries[i] >> 62 == 0)
                bitmap[page / WORD_BITS] &= ~((uint64_t)1 << page % WORD_BITS);
    }
    return 0;
}

/* The first page from `page` on whose bit is `wanted`, or `pages`. */
static uint64_t seek(const uint64_t *bitmap, uint64_t page, uint64_t pages, bool wanted)
{
    while (page < pages) {
        uint64_t word = bitmap[page / WORD_BITS];
        uint64_t rest = (wanted ? word : ~word) >> page % WORD_BITS;
        if (rest != 0) {
            page += (uint64_t)__builtin_ctzll(rest);
            break;
        }
        page += WORD_BITS - page % WORD_BITS;
    }
    return page < pages ? page : pages;
}

uint32_t vk_pages_ranges(const uint64_t *bitmap, uint64_t pages, uint64_t gpa, uint64_t *next,
                         uint64_t most_pages, struct vk_range *ranges, uint32_t room)
{
    uint32_t count = 0;
    uint64_t page = *next;
    while (count < room && most_pages != 0) {
        page = seek(bitmap, page, pages, true);
        if (page == pages)
            break;
        uint64_t end = seek(bitmap, page, pages, false);
        if (end - page > most_pages)
            end = page + most_pages;
        ranges[count++] = (struct vk_range){
            .gpa = gpa + page * PAGE_BYTES,
            .length = (end - page) * PAGE_BYTES,
        };
        most_pages -= end - page;
        page = end;
    }
    *next = page;
    return count;
}
