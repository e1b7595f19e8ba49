/*
 * What Python may call of the content of RAM; api.h has the rest, and says how both are read.
 */
/*
 * RAM to and from a file, in whole pages. Writing leaves holes for zeros and gives the bytes written;
 * pagemap_fd, if not negative, is /proc/self/pagemap, and says which pages of memory without a file
 * were ever touched. Reading gives the bytes read, fewer where the file ends.
 */
int64_t vk_ram_write(int fd, const void *from, uint64_t size, uint64_t offset, int pagemap_fd);
int64_t vk_ram_read(int fd, void *to, uint64_t size, uint64_t offset);

/*
 * RAM that is read from a file when it is touched, and in the background; pager.c says how. A region
 * is at an offset of the file, in pages of `page` bytes; only what is marked is read, the rest is zero.
 * event_fd is written when all is there, or when some of it cannot be.
 */
typedef struct vk_pager vk_pager;

enum vk_pager_state {
    VK_PAGER_FILLING = 0,
    VK_PAGER_DONE = 1,
    VK_PAGER_FAILED = 2,
};

struct vk_pager_progress {
    int32_t state;
    int32_t error; /* an errno, of a pager that has failed */
    uint64_t bytes_left;
    uint64_t faults;
};

int vk_pager_new(int file_fd, uint64_t file_size, int event_fd, vk_pager **made);
/* The number of the region, or a negative errno. */
int vk_pager_add(vk_pager *pager, uint64_t hva, uint64_t size, uint64_t page, uint64_t offset);
/* Before regions are added: their content comes from a peer, by their guest addresses as offsets. */
void vk_pager_ask(vk_pager *pager, int socket_fd);
void vk_pager_mark(vk_pager *pager, uint32_t number, uint64_t start, uint64_t size);
int vk_pager_start(vk_pager *pager);
void vk_pager_progress(vk_pager *pager, struct vk_pager_progress *progress);
/* Wait for no peer any more: whoever waits for a page of his, or touches one, is refused it. */
void vk_pager_give_up(vk_pager *pager);
/* Ends the threads; whoever touches what is not there after that gets zeros. */
void vk_pager_free(vk_pager *pager);

/* The other end of vk_pager_ask: requests as they have come so far, and the answer under way; faults.c. */
struct vk_fault_server {
    const uint8_t *page;
    uint64_t left;    /* bytes of head and page that are to be sent; 0: no answer is under way */
    uint8_t head[16]; /* of the answer, before the page */
    uint32_t filled;
    uint8_t bytes[2048];
};

/*
 * Answers what has come: how many pages went, 0 when nothing has; or a negative errno, -ECONNRESET
 * where the peer has closed. It waits for nobody: an answer that the peer has no room for goes on with
 * the next call.
 */
int64_t vk_faults_serve(int fd, const vk_memory *memory, struct vk_fault_server *server);
