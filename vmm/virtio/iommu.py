"""The IOMMU: gives each device behind it an address space that the guest makes.

Queues: 0, requests, each readable, with room for the answer; 1, events, each room for a fault.
Features: MAP_UNMAP, PROBE, BYPASS_CONFIG; INPUT_RANGE when addresses have less than 64 bits.
Refused: DOMAIN_RANGE, all numbers will do; MMIO, devices reach RAM alone.
Configuration space: the page sizes 4 KiB and 2 MiB, ranges, and the bypass byte, which the driver
may write and a reset of the device leaves as it is.
Snapshot: bypass, domains, their members and mappings.
Spec: Virtio 1.2, section 5.13.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

import trio

from vmm.errors import GuestError
from vmm.virtio import iommu_spec as spec
from vmm.virtio.device import OWN_QUEUES, Active, VirtioDevice, serve_chains, wait_kick
from vmm.virtio.iommu_domains import PAGE, Domains
from vmm.virtio.iommu_spec import FaultReason, IommuFeature, Outcome, Request
from vmm.virtio.spec import DeviceId, Feature

if TYPE_CHECKING:
    from vmm.kvm_cffi import Fault, IommuEndpoint
    from vmm.virtio.chain import Chain
    from vmm.virtio.queue import Queue

QUEUE_SIZE = 256
REQUESTS, EVENTS = range(2)

PAGE_SIZES = PAGE | 2 << 20
ADDRESS_BITS = 64
FAULTS_KEPT = 64
"""Until the driver has room for them; what comes then is lost, as it would be on real hardware."""
MAX_REQUEST_BYTES = 128


class Iommu(VirtioDevice):
    """An IOMMU for addresses of so many bits."""

    DEVICE_ID: ClassVar[DeviceId] = DeviceId.IOMMU
    RING_FEATURES: ClassVar[Feature] = OWN_QUEUES

    def __init__(self, id: str, address_bits: int = ADDRESS_BITS) -> None:
        super().__init__(id)
        self._has_range = address_bits < ADDRESS_BITS
        self._domains = Domains((1 << address_bits) - 1)
        self._faults: deque[bytes] = deque()
        self._fault_count = 0
        self._has_fault = trio.Event()

    @property
    def queue_sizes(self) -> tuple[int, ...]:
        """Requests and events."""
        return (QUEUE_SIZE, QUEUE_SIZE)

    @property
    def features(self) -> int:
        """All but the range of addresses depends on nothing."""
        always = IommuFeature.MAP_UNMAP | IommuFeature.PROBE | IommuFeature.BYPASS_CONFIG
        return always | IommuFeature.INPUT_RANGE * self._has_range

    def read_config(self, offset: int, size: int) -> bytes:
        """Page sizes, ranges, and bypass."""
        config = spec.CONFIG.pack(
            PAGE_SIZES,
            0,
            self._domains.input_last,
            0,
            0xFFFF_FFFF,
            spec.PROPERTY.size,
            self._domains.bypasses,
        )
        return config[offset : offset + size]

    def write_config(self, offset: int, data: bytes) -> None:
        """Hear whether devices in no domain have all of memory."""
        if offset == spec.BYPASS_OFFSET and data in (b"\0", b"\1"):
            self._domains.bypasses = data == b"\1"

    @property
    def endpoints(self) -> tuple[int, ...]:
        """The numbers of the devices behind it."""
        return tuple(sorted(self._domains.endpoints))

    @contextmanager
    def joined(self, number: int, endpoint: IommuEndpoint) -> Iterator[None]:
        """Have a device behind it, until the scope is left."""
        with self._domains.joined(number, endpoint):
            yield

    def report(self, number: int, fault: Fault) -> None:
        """Tell the driver of an access that was not allowed, when it has room for that."""
        self._fault_count += 1
        if len(self._faults) == FAULTS_KEPT:
            return
        reason = FaultReason.MAPPING if fault.has_domain else FaultReason.DOMAIN
        # The bits for reading and writing are those of vmm.kvm_cffi.Access.
        flags = int(fault.access) | spec.FAULT_ADDRESS
        self._faults.append(spec.FAULT.pack(reason, flags, number, fault.address))
        self._has_fault.set()

    async def run_queue(self, queue: Queue, active: Active) -> None:
        """Serve one queue. Raises: GuestError."""
        if queue.index == REQUESTS:
            await serve_chains(queue, self._serve)
        else:
            await self._tell_faults(queue)

    async def _tell_faults(self, queue: Queue) -> None:
        queue.suppress()
        while True:
            await self._has_fault.wait()
            while self._faults:
                chain = queue.pop()
                if chain is not None:
                    _tell_fault(queue, chain, self._faults.popleft())
                elif not queue.enable():
                    await wait_kick(queue.kick_fd)
                    queue.suppress()
                    await trio.lowlevel.checkpoint()
            self._has_fault = trio.Event()

    async def _serve(self, chain: Chain) -> int:
        room = chain.writable_bytes - spec.TAIL.size
        if room < 0:
            raise GuestError(
                f"A request to the IOMMU has room for {chain.writable_bytes} bytes; an answer has "
                f"{spec.TAIL.size} at least"
            )
        await self._domains.free_left()
        outcome, properties = await self._answer(chain.read(MAX_REQUEST_BYTES))
        if len(properties) > room:
            outcome, properties = Outcome.INVAL, bytes(room)
        return chain.write(properties + spec.TAIL.pack(outcome))

    async def _answer(self, request: bytes) -> tuple[Outcome, bytes]:
        """What became of a request, and what comes before that in the answer."""
        kind = request[0] if request else 0
        layout = spec.LAYOUTS.get(kind)
        if layout is None:
            return Outcome.UNSUPP, b""
        if len(request) < layout.size:
            return Outcome.INVAL, bytes(spec.PROPERTY.size if kind == Request.PROBE else 0)
        fields = layout.unpack_from(request)
        if kind == Request.PROBE:
            return self._probe(*fields)
        changes: dict[int, Callable[..., Awaitable[Outcome]]] = {
            Request.ATTACH: self._attach,
            Request.DETACH: self._detach,
            Request.MAP: self._map,
            Request.UNMAP: self._unmap,
        }
        return await changes[kind](*fields), b""

    def _probe(self, endpoint: int, reserved: bytes) -> tuple[Outcome, bytes]:
        """The same of every endpoint: where its interrupts are, which are not translated."""
        if endpoint not in self._domains.endpoints:
            return Outcome.NOENT, bytes(spec.PROPERTY.size)
        after_length = spec.PROPERTY.size - 4
        return Outcome.OK, spec.PROPERTY.pack(
            spec.RESERVED_MEMORY, after_length, spec.RESERVED_MSI, spec.MSI_FIRST, spec.MSI_LAST
        )

    async def _attach(self, domain: int, endpoint: int, flags: int, reserved: bytes) -> Outcome:
        if flags & ~spec.ATTACH_BYPASS or any(reserved):
            return Outcome.INVAL
        is_bypass = bool(flags & spec.ATTACH_BYPASS)
        return self._domains.attach(domain, endpoint, is_bypass=is_bypass)

    async def _detach(self, domain: int, endpoint: int, reserved: bytes) -> Outcome:
        if any(reserved):
            return Outcome.INVAL
        return self._domains.detach(domain, endpoint)

    async def _map(self, domain: int, first: int, last: int, gpa: int, flags: int) -> Outcome:
        return self._domains.map(domain, first, last, gpa, flags)

    async def _unmap(self, domain: int, first: int, last: int, reserved: bytes) -> Outcome:
        if any(reserved):
            return Outcome.INVAL
        return await self._domains.unmap(domain, first, last)

    def reset(self) -> None:
        """Forget domains and faults; whether devices bypass stays."""
        self._domains.clear()
        self._faults.clear()

    def save(self) -> dict[str, object]:
        """Bypass, domains, members, mappings."""
        return self._domains.save()

    def load(self, state: Mapping[str, object]) -> None:
        """Take over what ``save`` gave. Raises: ConfigError (caller)."""
        self._domains.load(state)

    @property
    def counters(self) -> dict[str, int]:
        """Domains, mappings, and accesses that were not allowed."""
        domains = self._domains
        return {
            "domains": domains.count,
            "mappings": domains.mapping_count,
            "faults": self._fault_count,
        }


def _tell_fault(queue: Queue, chain: Chain, fault: bytes) -> None:
    if chain.writable_bytes < len(fault):
        raise GuestError(
            f"An event buffer of the IOMMU has {chain.writable_bytes} bytes; it needs {len(fault)}"
        )
    queue.push(chain, chain.write(fault))
    queue.signal()
