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
int vk_bind_to_node(uint64_t address, uint64_t size, uint32_t node);
int64_t vk_raw_exit_loop(int vcpu_fd, void *run, uint64_t exits);

/* The host beside KVM: the CPUID instruction (EAX to EDX), AMX for guests, core scheduling. */
void vk_cpuid(uint32_t function, uint32_t index, uint32_t *registers);
int vk_request_amx_for_guests(void);
int vk_create_core_scheduling_cookie(int tid);
