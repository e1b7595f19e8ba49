/*
 * What Python may call of guest RAM; api.h has the rest, and says how both are read.
 */

/* Guest RAM: ascending, disjoint, not empty. */
typedef struct vk_memory vk_memory;

struct vk_memory_region {
    uint64_t gpa;
    uint64_t size;
    uint64_t hva;
};

vk_memory *vk_memory_new(const struct vk_memory_region *regions, uint32_t count, uint32_t spare);
int vk_memory_add(vk_memory *memory, const struct vk_memory_region *region);
void vk_memory_free(vk_memory *memory);
void *vk_memory_translate(const vk_memory *memory, uint64_t gpa, uint64_t size);

/* Which pages this process writes to guest RAM, a bit a page, while somebody copies it; dirty.h. */
typedef struct vk_dirty vk_dirty;

vk_dirty *vk_dirty_new(const struct vk_memory_region *regions, uint32_t count);
void vk_dirty_free(vk_dirty *dirty);
/* Has all writes to the memory recorded from now on; NULL: no more. */
void vk_memory_record(vk_memory *memory, vk_dirty *dirty);
void vk_memory_wrote_at(const vk_memory *memory, uint64_t hva, uint64_t size);
/* Adds what was written to the region since this was called last, and forgets it. */
void vk_dirty_take(vk_dirty *dirty, uint32_t region, uint64_t *bitmap);

/* Bitmaps of pages, bit 0 of word 0 first; pages.c. */
struct vk_range {
    uint64_t gpa;
    uint64_t length;
};

uint64_t vk_pages_count(const uint64_t *bitmap, uint64_t words);
/* Of `count` pages from `first` on, forgets those that hold nothing but zeros. */
void vk_pages_drop_zeros(uint64_t *bitmap, const uint8_t *page_0, uint64_t first, uint64_t count);
/*
 * Of anonymous private memory, forgets the pages that were never touched, by /proc/self/pagemap: to look
 * into them would give them page tables. 0 or a negative errno.
 */
int vk_pages_drop_untouched(uint64_t *bitmap, uint64_t hva, uint64_t first, uint64_t count,
                            int pagemap_fd);
/*
 * The set bits from page *next on, as ranges of guest memory that begin at `gpa` with page 0: how many
 * ranges there are, at most `room` with at most `most_pages`. *next is where it stopped.
 */
uint32_t vk_pages_ranges(const uint64_t *bitmap, uint64_t pages, uint64_t gpa, uint64_t *next,
                         uint64_t most_pages, struct vk_range *ranges, uint32_t room);

/* The bytes of all ranges; -EFAULT where one is empty, wraps, or is not RAM. Neighbours may be in pieces. */
int64_t vk_ranges_bytes(const vk_memory *memory, const struct vk_range *ranges, uint32_t count);

/* Guest memory through a socket, straight from or to where it is; transfer.c. */
struct vk_transfer {
    uint32_t range;  /* the first that is not done */
    uint64_t offset; /* how much of it is */
};

/*
 * Bytes moved within 50 ms, before the ranges were done or `most` were moved, 0 when the socket blocked
 * all the time; or a negative
 * errno: -EFAULT for what is not RAM, -ECONNRESET where the peer has closed.
 */
int64_t vk_send_ranges(int fd, const vk_memory *memory, const struct vk_range *ranges,
                       uint32_t count, struct vk_transfer *done, uint64_t most);
int64_t vk_receive_ranges(int fd, const vk_memory *memory, const struct vk_range *ranges,
                          uint32_t count, struct vk_transfer *done, uint64_t most);
