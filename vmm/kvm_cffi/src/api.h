/*
 * What Python may call. The build script hands this file to cffi as it stands, and the C sources
 * include it through kvm_cffi.h: there is one declaration of everything, without preprocessor lines.
 *
 * Functions that can fail return 0 or more, or a negative errno. None of them needs the GIL, and
 * cffi releases it around every call.
 */

/* A mechanism answers guest accesses in the vCPU's own thread (rung 1), or declines them (rung 2). */
typedef struct vk_mechanism vk_mechanism;
typedef struct vk_byte_ring vk_byte_ring;
typedef struct vk_uart vk_uart;
typedef struct vk_config_address vk_config_address;
typedef struct vk_shadow vk_shadow;
typedef struct vk_pm_timer vk_pm_timer;
typedef struct vk_router vk_router;
typedef struct vk_thread vk_thread;

/* As the vCPU thread would: 1 = answered in C, 0 = for the loop. `value` is in and out. */
int vk_mechanism_read(vk_mechanism *mechanism, uint64_t offset, uint32_t size, uint64_t *value);
int vk_mechanism_write(vk_mechanism *mechanism, uint64_t offset, uint32_t size, uint64_t value);
void vk_mechanism_free(void *mechanism);

vk_mechanism *vk_constant_new(uint64_t value);
vk_mechanism *vk_loop_new(void);

/* Bytes the guest writes; event_fd is signalled when the ring stops being empty. */
vk_byte_ring *vk_byte_ring_new(uint64_t read_value, uint32_t capacity, int event_fd);
uint32_t vk_byte_ring_drain(vk_byte_ring *ring, uint8_t *to, uint32_t room);
void vk_byte_ring_detach(vk_byte_ring *ring);
uint64_t vk_byte_ring_dropped(vk_byte_ring *ring);
void vk_byte_ring_free(vk_byte_ring *ring);

/* The whole state of a 16550A, its queues apart. */
struct vk_uart_state {
    uint8_t ier, lcr, mcr, lsr, msr, scr, dll, dlm, fcr;
    uint8_t thre_pending;
};

vk_uart *vk_uart_new(uint32_t transmit_capacity, uint32_t receive_capacity, int irq_fd,
                     int output_fd, int room_fd);
uint32_t vk_uart_drain(vk_uart *uart, uint8_t *to, uint32_t room);
uint32_t vk_uart_receive(vk_uart *uart, const uint8_t *bytes, uint32_t count);
void vk_uart_detach(vk_uart *uart);
uint64_t vk_uart_dropped(vk_uart *uart);
void vk_uart_save(vk_uart *uart, struct vk_uart_state *state, uint8_t *transmit,
                  uint32_t *transmit_count, uint8_t *receive, uint32_t *receive_count);
int vk_uart_load(vk_uart *uart, const struct vk_uart_state *state, const uint8_t *transmit,
                 uint32_t transmit_count, const uint8_t *receive, uint32_t receive_count);
void vk_uart_free(vk_uart *uart);

/* Ports 0xCF8-0xCFF over a shadow of one bus in ECAM layout. */
vk_config_address *vk_config_address_new(const void *shadow, uint64_t shadow_bytes);
uint32_t vk_config_address_get(vk_config_address *config);
void vk_config_address_set(vk_config_address *config, uint32_t address);

/* Reads within one of the parts come out of its bytes, which outlive the shadow. */
struct vk_shadow_part {
    uint64_t offset;
    uint64_t size;
    const uint8_t *bytes;
};

vk_shadow *vk_shadow_new(const struct vk_shadow_part *parts, uint32_t count);

vk_pm_timer *vk_pm_timer_new(uint32_t offset_ticks);
uint32_t vk_pm_timer_get_offset(vk_pm_timer *timer);
void vk_pm_timer_set_offset(vk_pm_timer *timer, uint32_t offset_ticks);

/* Which mechanism answers where; may be changed by one thread while vCPUs run. */
vk_router *vk_router_new(void);
int vk_router_map_pio(vk_router *router, uint64_t base, uint64_t size, vk_mechanism *mechanism);
int vk_router_unmap_pio(vk_router *router, uint64_t base, uint64_t size);
int vk_router_map_mmio(vk_router *router, uint64_t base, uint64_t size, vk_mechanism *mechanism);
int vk_router_unmap_mmio(vk_router *router, uint64_t base, uint64_t size);
void vk_router_free(vk_router *router);

/* One exit that needs Python. The kinds are the exit's meaning, not KVM's numbers. */
enum vk_exit_kind {
    VK_EXIT_PIO,
    VK_EXIT_MMIO,
    VK_EXIT_IOAPIC_EOI,
    VK_EXIT_SHUTDOWN,
    VK_EXIT_SYSTEM_EVENT,
    VK_EXIT_INTERNAL_ERROR,
    VK_EXIT_FAIL_ENTRY,
    VK_EXIT_RUN_ERROR,
    VK_EXIT_HLT,
    VK_EXIT_HYPERV,
    VK_EXIT_DEBUG,
    VK_EXIT_UNEXPECTED,
};

struct vk_exit {
    uint32_t kind;
    uint32_t size;
    uint32_t is_write;
    uint32_t count;
    uint64_t address;
    uint64_t value;
    uint32_t data_count;
    uint64_t data[16];
};

enum vk_thread_state { VK_STOPPED, VK_RUNNING, VK_PAUSED, VK_EXITED };

struct vk_exit_counts {
    uint64_t in_c;
    uint64_t unclaimed;
    uint64_t to_loop;
    uint64_t kicks;
};

vk_thread *vk_thread_new(int vcpu_fd, void *run, uint64_t run_bytes, vk_router *router,
                         int event_fd, const char *name);
int vk_thread_start(vk_thread *thread, const uint32_t *host_cpus, uint32_t host_cpu_count);
int vk_thread_state(vk_thread *thread);
int vk_thread_tid(vk_thread *thread);
void vk_thread_request_pause(vk_thread *thread);
void vk_thread_resume(vk_thread *thread);
void vk_thread_request_exit(vk_thread *thread);
void vk_thread_inject_nmi(vk_thread *thread);
int vk_thread_join(vk_thread *thread);
int vk_thread_take_exit(vk_thread *thread, struct vk_exit *exit);
int vk_thread_answer(vk_thread *thread, uint64_t value);
void vk_thread_exit_counts(vk_thread *thread, struct vk_exit_counts *counts);
void vk_thread_free(vk_thread *thread);

/* System calls by descriptor, with the errno in the result. */
int vk_open(const char *path);
int vk_ioctl(int fd, uint64_t request, void *argument);
int vk_ioctl_value(int fd, uint64_t request, uint64_t argument);

struct vk_msi_route {
    uint32_t gsi;
    uint32_t data;
    uint64_t address;
};

int vk_set_gsi_routing(int vm_fd, const struct vk_msi_route *routes, uint32_t count);
int vk_map_run(int vcpu_fd, uint64_t run_bytes, void **run);
int vk_unmap_run(void *run, uint64_t run_bytes);
struct kvm_sync_regs *vk_sync_regs(void *run);
int vk_bind_to_node(uint64_t address, uint64_t size, uint32_t node);
int64_t vk_raw_exit_loop(int vcpu_fd, void *run, uint64_t exits);

/* The host beside KVM: the CPUID instruction (EAX to EDX), AMX for guests, core scheduling. */
void vk_cpuid(uint32_t function, uint32_t index, uint32_t *registers);
int vk_request_amx_for_guests(void);
int vk_create_core_scheduling_cookie(void);

/* Landlock: the version that the kernel has, a new ruleset, what it allows, and to obey it. */
int vk_landlock_abi(void);
int vk_landlock_new(uint64_t handled);
int vk_landlock_allow(int ruleset, int path_fd, uint64_t rights);
int vk_landlock_restrict(int ruleset);

/*
 * Seccomp; programs are arrays of struct sock_filter. One is for all threads that there are and will
 * be; those of a kind are born with another besides, if it was declared before. With the names of the
 * system calls from number 0 on, each ended by a zero byte, one that is trapped is named on stderr.
 */
enum vk_thread_kind {
    VK_THREAD_VCPU = 0,
    VK_THREAD_PAGER = 1,
};
int vk_seccomp_report_traps(const char *names, uint32_t bytes);
int vk_seccomp_declare(enum vk_thread_kind kind, const void *program, uint32_t bytes);
int vk_seccomp_restrict(const void *program, uint32_t bytes);

/* Virtqueues; virtqueue.h says what the functions do. */
typedef struct vk_queue vk_queue;
typedef struct vk_chain vk_chain;

enum vk_queue_feature { VK_QUEUE_PACKED = 1, VK_QUEUE_EVENT_IDX = 2, VK_QUEUE_INDIRECT = 4 };

/* How a guest broke a ring; beside each, what the value that goes with it is. */
enum vk_breach {
    VK_BREACH_NONE,
    VK_BREACH_SIZE,             /* the size */
    VK_BREACH_ALIGNMENT,        /* the address of the part */
    VK_BREACH_RING_ADDRESS,     /* the address of the part */
    VK_BREACH_POSITION,         /* the position, which is not in the ring */
    VK_BREACH_AVAIL_INDEX,      /* the driver's index */
    VK_BREACH_HEAD,             /* the head, beyond the table */
    VK_BREACH_HEAD_IN_FLIGHT,   /* the head or the buffer id */
    VK_BREACH_NEXT,             /* the next descriptor, beyond the table */
    VK_BREACH_CHAIN_LENGTH,     /* the most there may be */
    VK_BREACH_CHAIN_BYTES,      /* the bytes */
    VK_BREACH_ADDRESS,          /* the address */
    VK_BREACH_ORDER,            /* the address of the readable buffer after a writable one */
    VK_BREACH_INDIRECT_REFUSED, /* the address of the table, as in the next four */
    VK_BREACH_INDIRECT_NESTED,
    VK_BREACH_INDIRECT_CHAINED,
    VK_BREACH_TABLE_SIZE,       /* the bytes of the table */
    VK_BREACH_OVERRUN,          /* the ring slots in flight, more than there are */
    VK_BREACH_TRANSLATION,      /* the address, which the IOMMU does not let the device use so */
    VK_BREACH_TABLE_PIECES,     /* the bytes of the table, more than may lie in several pieces */
    VK_BREACH_LOOKUPS,          /* the most there may be */
};

/* What a queue is made of and what a snapshot keeps of it. Packed positions: wrap counter in bit 15. */
struct vk_queue_state {
    uint32_t index;
    uint32_t size;
    uint32_t features;
    uint64_t desc;
    uint64_t driver;
    uint64_t device;
    uint32_t next_avail;
    uint32_t next_used;
    uint32_t unsignalled;
};

/* What Python wants to know of a chain beside its buffers. */
struct vk_chain_facts {
    uint32_t head;
    uint32_t readable;
    uint32_t writable;
    uint32_t readable_bytes;
    uint32_t writable_bytes;
};

/*
 * A queue whose ring cannot be used is broken from the start. Behind the IOMMU (with an endpoint, which
 * outlives it) where its ring is shows at its first use. NULL: no memory.
 */
vk_queue *vk_queue_new(const vk_memory *memory, vk_endpoint *endpoint,
                       const struct vk_queue_state *state, int kick_fd, int interrupt_fd);
void vk_queue_free(vk_queue *queue);
void vk_queue_save(const vk_queue *queue, struct vk_queue_state *state);
int vk_queue_breach(const vk_queue *queue, uint64_t *value);
void vk_queue_set_interrupt_fd(vk_queue *queue, int interrupt_fd);
uint64_t vk_queue_interrupts(const vk_queue *queue);
uint32_t vk_queue_in_flight(const vk_queue *queue);

/* 1: `chain` holds the next chain; 0: there is none; -EPROTO: the guest broke the ring. */
int vk_queue_pop(vk_queue *queue, vk_chain *chain);
/* Gives a chain back as if it had not been popped: the one popped last, -EINVAL for another. */
int vk_queue_unpop(vk_queue *queue, uint16_t head);
/* Completes a chain, so many bytes of which were written. -ENOENT: no such chain is in flight. */
int vk_queue_push(vk_queue *queue, uint16_t head, uint32_t written);
/* The same for a chain all of whose writable part may have been written, by whatever means. */
int vk_queue_push_chain(vk_queue *queue, const vk_chain *chain, uint32_t written);
/* 1: vk_queue_pop has something to give (perhaps -EPROTO). Cheap, for polling. */
int vk_queue_poll(vk_queue *queue);
/* Whether the driver wants to hear of what was pushed since this was asked last. Once a batch. */
int vk_queue_needs_interrupt(vk_queue *queue);
/* Interrupts the driver if it wants that: 1 if it was interrupted. */
int vk_queue_signal(vk_queue *queue);
/* Asks the driver not to kick, or to kick for the next chain: enable gives 1 if there is one already. */
int vk_queue_suppress(vk_queue *queue);
int vk_queue_enable(vk_queue *queue);
/* Forgets the kicks so far; before the ring is looked at. */
void vk_queue_clear_kick(vk_queue *queue);

/* A copy of a chain that is only as large as it must be; freed with vk_chain_free. NULL: no memory. */
vk_chain *vk_chain_new(void);
vk_chain *vk_chain_copy(const vk_chain *chain);
void vk_chain_free(vk_chain *chain);
void vk_chain_describe(const vk_chain *chain, struct vk_chain_facts *facts);
void *vk_chain_buffer(const vk_chain *chain, uint32_t at, uint64_t *size);
/* From the readable or to the writable part, `offset` bytes into it: how many bytes there were. */
uint64_t vk_chain_read(const vk_chain *chain, uint64_t offset, void *to, uint64_t size);
uint64_t vk_chain_write(const vk_chain *chain, uint64_t offset, const void *from, uint64_t size);

/* Rate limits; limiter.h says how they work. A bucket of size or refill time 0 limits nothing. */
typedef struct vk_limiter vk_limiter;

struct vk_bucket_setup {
    uint64_t size;
    uint64_t burst;
    uint64_t refill_ns;
};

vk_limiter *vk_limiter_new(const struct vk_bucket_setup *bandwidth,
                           const struct vk_bucket_setup *ops, uint64_t now_ns);
uint64_t vk_limiter_take_ops(vk_limiter *limiter, uint64_t bytes, uint64_t ops, uint64_t now_ns);
void vk_limiter_free(vk_limiter *limiter);
uint64_t vk_now_ns(void);

/* A disk image and the engine that serves the queues of a virtio-blk device from it. */
typedef struct vk_disk vk_disk;
typedef struct vk_blk vk_blk;

enum vk_disk_ability {
    VK_DISK_WRITE = 1,
    VK_DISK_DISCARD = 2,
    VK_DISK_ZERO = 4,
    VK_DISK_GUARD_FIRST = 8, /* sector 0 may not be changed */
};

struct vk_disk_setup {
    int fd;
    uint32_t alignment; /* of addresses, offsets and lengths, in bytes; 1 = any, else a power of two */
    uint32_t abilities;
    uint64_t sectors;
    uint8_t serial[20];
};

/* Transfers that succeeded; with no operation least_ns is all ones and the rest 0. */
struct vk_io_counters {
    uint64_t ops;
    uint64_t bytes;
    uint64_t total_ns;
    uint64_t least_ns;
    uint64_t most_ns;
};

struct vk_disk_counters {
    struct vk_io_counters reads;
    struct vk_io_counters writes;
    uint64_t errors; /* of the host */
    uint32_t last_errno;
};

vk_disk *vk_disk_new(const struct vk_disk_setup *setup);
void vk_disk_set_sectors(vk_disk *disk, uint64_t sectors);
void vk_disk_set_written_through(vk_disk *disk, int wanted);
void vk_disk_count(const vk_disk *disk, struct vk_disk_counters *counters);
void vk_disk_free(vk_disk *disk);
/* Whether the host can give parts of a file back: 0, or why not. */
int vk_punch_hole_past(int fd, uint64_t end);

enum vk_blk_outcome {
    VK_BLK_HAS_MORE = 1,   /* serve again after the loop's turn */
    VK_BLK_IS_TIMED = 2,   /* serve again after vk_blk_wait_ns at the latest */
    VK_BLK_HAS_WORK = 4,   /* there is a request to vk_blk_take */
    VK_BLK_HAS_ERRORS = 8, /* vk_disk_count has new ones */
};

/* Disk, limiter (or NULL) and queues outlive the engine. */
int vk_blk_new(vk_disk *disk, vk_limiter *limiter, vk_queue *const *queues, uint32_t count,
               uint64_t poll_most_ns, vk_blk **made);
int vk_blk_open_ring(vk_blk *blk);
int vk_blk_set_worker_cpus(vk_blk *blk, const uint32_t *host_cpus, uint32_t count);
int vk_blk_fd(const vk_blk *blk);
/* Does all there is to do: its outcome, -EPROTO when the guest broke a queue, or the host's errno. */
int vk_blk_serve(vk_blk *blk);
uint64_t vk_blk_wait_ns(const vk_blk *blk);
uint32_t vk_blk_in_flight(const vk_blk *blk);
/* From now on nothing more is taken from the queues. */
void vk_blk_stop(vk_blk *blk);
/* Without a ring: the next request to perform, -1 when there is none; in any thread; and its end. */
int64_t vk_blk_take(vk_blk *blk);
int64_t vk_blk_perform(vk_blk *blk, uint32_t request);
void vk_blk_complete(vk_blk *blk, uint32_t request, int64_t result);
void vk_blk_free(vk_blk *blk);

/* The packet engine of one pair of virtio-net's queues; net.c says how it works. */
typedef struct vk_net vk_net;

/* Descriptors and objects outlive the engine. NULL: no such queue, no limit. */
struct vk_net_setup {
    int tap_fd; /* does not block */
    vk_queue *rx;
    vk_queue *tx;
    vk_limiter *rx_limiter;
    vk_limiter *tx_limiter;
    uint64_t poll_most_ns; /* how long, at most, the rings are watched after a batch */
};

/* Packets and bytes of them without virtio's header; several engines may count in one place. */
struct vk_net_counters {
    uint64_t rx_frames;
    uint64_t rx_bytes;
    uint64_t rx_dropped; /* larger than the driver's buffer, or shorter than a header */
    uint64_t tx_frames;
    uint64_t tx_bytes;
    uint64_t tx_dropped; /* refused by the tap */
};

enum vk_net_outcome {
    VK_NET_HAS_MORE = 1, /* serve again after the loop's turn */
    VK_NET_IS_TIMED = 2, /* serve again after vk_net_wait_ns at the latest */
};

int vk_net_new(const struct vk_net_setup *setup, struct vk_net_counters *counters, vk_net **made);
int vk_net_fd(const vk_net *net);
/* At rest, as at first, an engine leaves tap and queues alone. */
int vk_net_set_enabled(vk_net *net, int enabled);
/*
 * Serves what there is: its outcome; -EPROTO when the guest broke a queue; -EBADMSG when a chain is too
 * short for a header; or the errno of a tap that is gone.
 */
int vk_net_serve(vk_net *net);
uint64_t vk_net_wait_ns(const vk_net *net);
/* Gives back the chain that a limit has it hold. */
void vk_net_stop(vk_net *net);
void vk_net_free(vk_net *net);
