"""The built extension, as its callers see it; a unit test compares this with the real one."""

# ruff: noqa: ANN401  (a C field can be of any type)

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from typing_extensions import Buffer

class CData:
    """A C value, pointer, array or structure; fields are attributes."""

    def __getattr__(self, name: str) -> Any: ...
    def __setattr__(self, name: str, value: Any) -> None: ...
    def __getitem__(self, at: int | slice) -> Any: ...
    def __setitem__(self, at: int | slice, value: Any) -> None: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...
    def __int__(self) -> int: ...
    def __enter__(self) -> CData: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...

class CBuffer:
    """The bytes of a C object."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __setitem__(self, at: slice, value: bytes) -> None: ...
    def __len__(self) -> int: ...

class FFI:
    NULL: CData
    def new(
        self,
        cdecl: str,
        init: int | bytes | Sequence[int] | Mapping[str, int] | None = None,
        /,
    ) -> CData: ...
    def cast(self, cdecl: str, source: CData | int, /) -> CData: ...
    def buffer(self, cdata: CData, size: int = -1, /) -> CBuffer: ...
    def from_buffer(self, source: Buffer, /) -> CData: ...
    def gc(self, cdata: CData, destructor: Callable[[CData], None], /) -> CData: ...
    def sizeof(self, cdecl: str, /) -> int: ...

class Lib:
    VK_EXIT_PIO: int
    VK_EXIT_MMIO: int
    VK_EXIT_IOAPIC_EOI: int
    VK_EXIT_SHUTDOWN: int
    VK_EXIT_SYSTEM_EVENT: int
    VK_EXIT_INTERNAL_ERROR: int
    VK_EXIT_FAIL_ENTRY: int
    VK_EXIT_RUN_ERROR: int
    VK_EXIT_HLT: int
    VK_EXIT_HYPERV: int
    VK_EXIT_UNEXPECTED: int
    VK_STOPPED: int
    VK_RUNNING: int
    VK_PAUSED: int
    VK_EXITED: int
    KVM_GET_API_VERSION: int
    KVM_CREATE_VM: int
    KVM_CHECK_EXTENSION: int
    KVM_GET_VCPU_MMAP_SIZE: int
    KVM_GET_SUPPORTED_CPUID: int
    KVM_GET_MSR_INDEX_LIST: int
    KVM_GET_MSR_FEATURE_INDEX_LIST: int
    KVM_CREATE_VCPU: int
    KVM_GET_DIRTY_LOG: int
    KVM_CLEAR_DIRTY_LOG: int
    KVM_SET_USER_MEMORY_REGION: int
    KVM_SET_TSS_ADDR: int
    KVM_SET_IDENTITY_MAP_ADDR: int
    KVM_IRQFD: int
    KVM_IOEVENTFD: int
    KVM_SIGNAL_MSI: int
    KVM_GET_CLOCK: int
    KVM_SET_CLOCK: int
    KVM_ENABLE_CAP: int
    KVM_GET_REGS: int
    KVM_SET_REGS: int
    KVM_GET_SREGS: int
    KVM_SET_SREGS: int
    KVM_GET_FPU: int
    KVM_SET_FPU: int
    KVM_GET_MSRS: int
    KVM_SET_MSRS: int
    KVM_SET_CPUID2: int
    KVM_GET_CPUID2: int
    KVM_GET_LAPIC: int
    KVM_SET_LAPIC: int
    KVM_GET_MP_STATE: int
    KVM_SET_MP_STATE: int
    KVM_GET_VCPU_EVENTS: int
    KVM_SET_VCPU_EVENTS: int
    KVM_GET_DEBUGREGS: int
    KVM_SET_DEBUGREGS: int
    KVM_GET_XSAVE: int
    KVM_GET_XSAVE2: int
    KVM_SET_XSAVE: int
    KVM_GET_XCRS: int
    KVM_SET_XCRS: int
    KVM_GET_TSC_KHZ: int
    KVM_SET_TSC_KHZ: int
    KVM_MEM_LOG_DIRTY_PAGES: int
    KVM_MEM_READONLY: int
    KVM_IRQFD_FLAG_DEASSIGN: int
    KVM_IOEVENTFD_FLAG_DATAMATCH: int
    KVM_IOEVENTFD_FLAG_PIO: int
    KVM_IOEVENTFD_FLAG_DEASSIGN: int
    def vk_mechanism_read(
        self,
        mechanism: CData,
        offset: int,
        size: int,
        value: CData,
        /,
    ) -> int: ...
    def vk_mechanism_write(
        self,
        mechanism: CData,
        offset: int,
        size: int,
        value: int,
        /,
    ) -> int: ...
    def vk_mechanism_free(self, mechanism: CData, /) -> None: ...
    def vk_constant_new(self, value: int, /) -> CData: ...
    def vk_loop_new(self, /) -> CData: ...
    def vk_byte_ring_new(self, read_value: int, capacity: int, event_fd: int, /) -> CData: ...
    def vk_byte_ring_drain(self, ring: CData, to: CData, room: int, /) -> int: ...
    def vk_byte_ring_detach(self, ring: CData, /) -> None: ...
    def vk_byte_ring_dropped(self, ring: CData, /) -> int: ...
    def vk_byte_ring_free(self, ring: CData, /) -> None: ...
    def vk_uart_new(
        self,
        transmit_capacity: int,
        receive_capacity: int,
        irq_fd: int,
        output_fd: int,
        room_fd: int,
        /,
    ) -> CData: ...
    def vk_uart_drain(self, uart: CData, to: CData, room: int, /) -> int: ...
    def vk_uart_receive(self, uart: CData, bytes_: CData | bytes, count: int, /) -> int: ...
    def vk_uart_detach(self, uart: CData, /) -> None: ...
    def vk_uart_dropped(self, uart: CData, /) -> int: ...
    def vk_uart_save(
        self,
        uart: CData,
        state: CData,
        transmit: CData,
        transmit_count: CData,
        receive: CData,
        receive_count: CData,
        /,
    ) -> None: ...
    def vk_uart_load(
        self,
        uart: CData,
        state: CData,
        transmit: CData | bytes,
        transmit_count: int,
        receive: CData | bytes,
        receive_count: int,
        /,
    ) -> int: ...
    def vk_uart_free(self, uart: CData, /) -> None: ...
    def vk_config_address_new(self, shadow: CData, shadow_bytes: int, /) -> CData: ...
    def vk_config_address_get(self, config: CData, /) -> int: ...
    def vk_config_address_set(self, config: CData, address: int, /) -> None: ...
    def vk_pm_timer_new(self, offset_ticks: int, /) -> CData: ...
    def vk_pm_timer_get_offset(self, timer: CData, /) -> int: ...
    def vk_pm_timer_set_offset(self, timer: CData, offset_ticks: int, /) -> None: ...
    def vk_router_new(self, /) -> CData: ...
    def vk_router_map_pio(
        self,
        router: CData,
        base: int,
        size: int,
        mechanism: CData,
        /,
    ) -> int: ...
    def vk_router_unmap_pio(self, router: CData, base: int, size: int, /) -> int: ...
    def vk_router_map_mmio(
        self,
        router: CData,
        base: int,
        size: int,
        mechanism: CData,
        /,
    ) -> int: ...
    def vk_router_unmap_mmio(self, router: CData, base: int, size: int, /) -> int: ...
    def vk_router_free(self, router: CData, /) -> None: ...
    def vk_thread_new(
        self,
        vcpu_fd: int,
        run: CData,
        run_bytes: int,
        router: CData,
        event_fd: int,
        name: CData | bytes,
        /,
    ) -> CData: ...
    def vk_thread_start(self, thread: CData, host_cpus: CData, host_cpu_count: int, /) -> int: ...
    def vk_thread_state(self, thread: CData, /) -> int: ...
    def vk_thread_tid(self, thread: CData, /) -> int: ...
    def vk_thread_request_pause(self, thread: CData, /) -> None: ...
    def vk_thread_resume(self, thread: CData, /) -> None: ...
    def vk_thread_request_exit(self, thread: CData, /) -> None: ...
    def vk_thread_inject_nmi(self, thread: CData, /) -> None: ...
    def vk_thread_join(self, thread: CData, /) -> int: ...
    def vk_thread_take_exit(self, thread: CData, exit: CData, /) -> int: ...
    def vk_thread_answer(self, thread: CData, value: int, /) -> int: ...
    def vk_thread_exit_counts(self, thread: CData, counts: CData, /) -> None: ...
    def vk_thread_free(self, thread: CData, /) -> None: ...
    def vk_open(self, path: CData | bytes, /) -> int: ...
    def vk_ioctl(self, fd: int, request: int, argument: CData, /) -> int: ...
    def vk_ioctl_value(self, fd: int, request: int, argument: int, /) -> int: ...
    def vk_set_gsi_routing(self, vm_fd: int, routes: CData, count: int, /) -> int: ...
    def vk_map_run(self, vcpu_fd: int, run_bytes: int, /) -> CData: ...
    def vk_unmap_run(self, run: CData, run_bytes: int, /) -> int: ...
    def vk_bind_to_node(self, address: int, size: int, node: int, /) -> int: ...
    def vk_raw_exit_loop(self, vcpu_fd: int, run: CData, exits: int, /) -> int: ...

ffi: FFI
lib: Lib
