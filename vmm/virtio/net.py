"""The network device: a tap of the host as its driver sees it.

Queues: 2 a pair, what the driver receives and what it sends, then one for commands.
Features: MAC, MQ, STATUS, GUEST_ANNOUNCE, CTRL_VQ always; MTU if one is set; checksum and
segmentation offloads as configured, CTRL_GUEST_OFFLOADS with checksums.
Refused: MRG_RXBUF, CTRL_RX and CTRL_VLAN (their commands are answered, to no effect),
CTRL_MAC_ADDR, RSS, HASH_REPORT, USO.
Configuration space: MAC address, status, most pairs of queues, MTU; read-only.
Snapshot: the MAC address, and what the driver chose: pairs in use, offloads, announcement pending.
Spec: Virtio 1.2, section 5.1.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

import trio

from vmm.errors import ConfigError, GuestError, InternalError
from vmm.kvm_cffi import Virtqueue
from vmm.kvm_cffi.net import NetCounters, NetEngine, NetOutcome
from vmm.net.mac import text_of
from vmm.net.offload import HEADER_BYTES, Offload
from vmm.net.rarp import announcement
from vmm.virtio.device import OWN_QUEUES, Active, VirtioDevice, serve_chains
from vmm.virtio.net_spec import Ack, Class, Command, LinkStatus, NetFeature
from vmm.virtio.spec import DeviceId, Feature

if TYPE_CHECKING:
    from typing import Any

    from vmm.kvm_cffi.limiter import Limiter
    from vmm.virtio.chain import Chain
    from vmm.virtio.queue import Queue

logger = logging.getLogger(__name__)

NO_OFFLOADS = NetFeature(0)

POLL_NS = 20_000
"""How long rings and tap are watched after a batch, at most: about what waking the loop costs."""

COMMAND_LIMIT = 64
"""Bytes of a command that are looked at; those that are obeyed have fewer."""

OFFLOADS = {
    NetFeature.GUEST_CSUM: Offload.CSUM,
    NetFeature.GUEST_TSO4: Offload.TSO4,
    NetFeature.GUEST_TSO6: Offload.TSO6,
    NetFeature.GUEST_ECN: Offload.TSO_ECN,
    NetFeature.GUEST_UFO: Offload.UFO,
}
"""What a driver may change while it runs, section 5.1.6.5.6, and what the tap calls it."""


class TapQueues(Protocol):
    """An open tap: a descriptor for each pair, that does not block. It outlives its device."""

    @property
    def name(self) -> str: ...
    @property
    def fds(self) -> Sequence[int]: ...
    def set_offloads(self, offloads: Offload) -> None: ...
    def use_queues(self, count: int) -> None: ...


class PairLimits(NamedTuple):
    """The rate limits of one pair of queues, None for none."""

    rx: Limiter | None = None
    tx: Limiter | None = None


class Net(VirtioDevice):
    """A network interface over an open tap, with as many pairs of queues as the tap has.

    ``mtu`` is told to the driver; ``offloads`` are the features of that kind that it is offered.
    ``limits`` has an entry a pair, or none at all. ``settled`` is what of its configuration was
    left open and has been chosen.
    """

    DEVICE_ID: ClassVar[DeviceId] = DeviceId.NET
    PCI_CLASS: ClassVar[tuple[int, int]] = (0x02, 0x00)
    RING_FEATURES: ClassVar[Feature] = OWN_QUEUES | Feature.RING_EVENT_IDX

    def __init__(
        self,
        id: str,
        tap: TapQueues,
        mac: bytes,
        queue_size: int,
        *,
        mtu: int | None = None,
        offloads: NetFeature = NO_OFFLOADS,
        limits: Sequence[PairLimits] = (),
        settled: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(id)
        self._settled = settled or {}
        self._tap = tap
        self._mac = mac
        self._queue_size = queue_size
        self._mtu = mtu
        self._offered_offloads = offloads
        self._most_pairs = len(tap.fds)
        self._limits = limits or (PairLimits(),) * self._most_pairs
        self._counters = NetCounters()
        self._agreed = 0
        self._engines: tuple[NetEngine[Any], ...] = ()
        self._pairs = 1
        self._guest_offloads: int | None = None
        """What the driver chose by a command; None when it left it at all it agreed on."""
        self._is_announcing = False
        self._owes_announcement = False

    @property
    def queue_sizes(self) -> tuple[int, ...]:
        """Pairs of receive and transmit queues, and the one for commands."""
        return (self._queue_size,) * (2 * self._most_pairs + 1)

    @property
    def features(self) -> int:
        """What is always there, and what the configuration adds."""
        features = NetFeature.MAC | NetFeature.STATUS | NetFeature.MQ
        features |= NetFeature.CTRL_VQ | NetFeature.GUEST_ANNOUNCE | self._offered_offloads
        return features if self._mtu is None else features | NetFeature.MTU

    @property
    def resources(self) -> tuple[dict[str, object], ...]:
        """Its address."""
        return ({"MacAddress": text_of(self._mac)},)

    @property
    def settled(self) -> Mapping[str, object]:
        """The address, and the tap's name if the kernel chose it."""
        return self._settled

    def read_config(self, offset: int, size: int) -> bytes:
        """struct virtio_net_config up to the MTU, section 5.1.4."""
        status = LinkStatus.UP | (LinkStatus.ANNOUNCE if self._is_announcing else 0)
        config = struct.pack("<6sHHH", self._mac, status, self._most_pairs, self._mtu or 0)
        return config[offset : offset + size]

    async def run_queues(self, active: Active) -> None:
        """Carry packets, a task a pair. Raises: GuestError, HostError when the tap is gone."""
        self._agreed = active.features
        self._choose_offloads()
        with ExitStack() as stack:
            pairs = range(self._most_pairs)
            engines = [stack.enter_context(self._open_engine(active, pair)) for pair in pairs]
            self._engines = tuple(engines)
            stack.callback(self._end)
            self._use_pairs(self._pairs)
            if self._owes_announcement:
                self._tell_where()
            async with trio.open_nursery() as nursery:
                for engine in engines:
                    nursery.start_soon(_carry, engine)
                commands = active.queue(self._command_queue(active))
                if commands is not None and active.has(NetFeature.CTRL_VQ):
                    nursery.start_soon(serve_chains, commands, self._obey)

    def _command_queue(self, active: Active) -> int:
        """Its index, section 5.1.2: after the pairs that the driver knows of."""
        return 2 * (self._most_pairs if active.has(NetFeature.MQ) else 1)

    def _open_engine(self, active: Active, pair: int) -> NetEngine[Any]:
        if pair > 0 and not active.has(NetFeature.MQ):
            rx = tx = None
        else:
            rx, tx = (_in_c(active.queue(2 * pair + at)) for at in (0, 1))
        limits = self._limits[pair]
        return NetEngine(
            self._tap.fds[pair],
            self._counters,
            rx=rx,
            tx=tx,
            rx_limiter=limits.rx,
            tx_limiter=limits.tx,
            poll_ns=POLL_NS,
            tap=self._tap.name,
        )

    def _end(self) -> None:
        self._engines = ()
        count = self._counters.read()
        if count.rx_dropped or count.tx_dropped:
            logger.info(
                "Network %s has dropped %d packets that its driver had no room for, and %d that "
                "tap %s refused",
                self.id,
                count.rx_dropped,
                count.tx_dropped,
                self._tap.name,
            )

    def _use_pairs(self, count: int) -> None:
        """Carry packets on the first pairs only. Raises: HostError."""
        for engine in self._engines[count:]:
            engine.set_enabled(False)
        self._tap.use_queues(count)
        for engine in self._engines[:count]:
            engine.set_enabled(True)
        self._pairs = count

    def _choose_offloads(self) -> None:
        """Have the host leave undone what the driver takes undone. Raises: HostError."""
        wanted = self._agreed if self._guest_offloads is None else self._guest_offloads
        offloads = Offload(0)
        # The others rest on this one.
        if wanted & NetFeature.GUEST_CSUM:
            for feature, offload in OFFLOADS.items():
                if wanted & feature:
                    offloads |= offload
        # And this one on those, or the kernel refuses all.
        if not offloads & (Offload.TSO4 | Offload.TSO6):
            offloads &= ~Offload.TSO_ECN
        self._tap.set_offloads(offloads)

    async def _obey(self, chain: Chain) -> int:
        """Carry out a command, section 5.1.6.5: class, command and data; then an answer."""
        # What a driver says that resets the device at the same time is not for the next one.
        await trio.lowlevel.checkpoint_if_cancelled()
        if not chain.writable_bytes:
            raise GuestError("A network command has no room for its answer")
        command = chain.read(COMMAND_LIMIT)
        is_done = len(command) >= 2 and self._carry_out((command[0], command[1]), command[2:])
        return chain.write(bytes((Ack.OK if is_done else Ack.ERR,)))

    def _carry_out(self, command: tuple[int, int], data: bytes) -> bool:
        """Whether a command was obeyed. Raises: HostError."""
        if command[0] in (Class.RX, Class.VLAN):
            return True
        if command == Command.ANNOUNCE_ACK.value:
            self._is_announcing = False
            return True
        if command == Command.PAIRS_SET.value and len(data) >= 2:
            return self._set_pairs(int.from_bytes(data[:2], "little"))
        if command == Command.GUEST_OFFLOADS_SET.value and len(data) >= 8:
            return self._set_guest_offloads(int.from_bytes(data[:8], "little"))
        return False

    def _set_pairs(self, count: int) -> bool:
        if not self._agreed & NetFeature.MQ or not 1 <= count <= self._most_pairs:
            return False
        self._use_pairs(count)
        return True

    def _set_guest_offloads(self, wanted: int) -> bool:
        possible = self._agreed & sum(OFFLOADS)
        if not self._agreed & NetFeature.CTRL_GUEST_OFFLOADS or wanted & ~possible:
            return False
        self._guest_offloads = wanted
        self._choose_offloads()
        return True

    def _tell_where(self) -> None:
        """Say it in the driver's place, which may not know how, and then ask the driver to."""
        self._owes_announcement = False
        try:
            os.write(self._tap.fds[0], bytes(HEADER_BYTES) + announcement(self._mac))
        except OSError as error:  # A tap that is full, or down, has nobody to tell it to.
            logger.warning("Network %s could not announce itself: %s", self.id, error)
        self.announce()

    def announce(self) -> None:
        """Ask the driver to tell the network where it is now, as after a migration.

        Nothing happens when no driver that could do so is there.
        """
        if self._engines and self._agreed & NetFeature.GUEST_ANNOUNCE:
            self._is_announcing = True
            self.config_changed()

    def reset(self) -> None:
        """Forget what the driver chose."""
        self._pairs = 1
        self._guest_offloads = None
        self._is_announcing = False

    def save(self) -> dict[str, object]:
        """The address, and what the driver chose."""
        return {
            "mac": text_of(self._mac),
            "pairs": self._pairs,
            "guest_offloads": self._guest_offloads,
            "is_announcing": self._is_announcing,
        }

    def load(self, state: Mapping[str, object]) -> None:
        """Take over what ``save`` gave. Raises: ConfigError when it cannot be (caller)."""
        mac, pairs, offloads = state.get("mac"), state.get("pairs"), state.get("guest_offloads")
        try:
            self._mac = _six_bytes(mac)
        except ValueError:
            raise ConfigError(f"The state of network {self.id} has MAC address {mac!r}") from None
        if not isinstance(pairs, int) or not 1 <= pairs <= self._most_pairs:
            raise ConfigError(
                f"The state of network {self.id} has {pairs!r} pairs of queues in use; its tap has "
                f"{self._most_pairs}; set num_queues as it was"
            )
        if offloads is not None and not isinstance(offloads, int):
            raise ConfigError(f"The state of network {self.id} has offloads {offloads!r}")
        self._pairs, self._guest_offloads = pairs, offloads
        self._is_announcing = bool(state.get("is_announcing"))
        # Whatever was between the guest and the others may lead elsewhere now.
        self._owes_announcement = True

    @property
    def counters(self) -> dict[str, int]:
        """Packets and bytes each way, as the guest sees the ways."""
        count = self._counters.read()
        return {
            "rx_bytes": count.rx_bytes,
            "rx_frames": count.rx_frames,
            "tx_bytes": count.tx_bytes,
            "tx_frames": count.tx_frames,
        }


async def _carry(engine: NetEngine[Any]) -> None:
    """Serve one pair until cancelled. Raises: GuestError, HostError."""
    while True:
        outcome = engine.serve()
        if outcome & NetOutcome.HAS_MORE:
            await trio.lowlevel.checkpoint()
        elif outcome & NetOutcome.IS_TIMED:
            with trio.move_on_after(engine.wait_seconds):
                await trio.lowlevel.wait_readable(engine.fd)
        else:
            await trio.lowlevel.wait_readable(engine.fd)


def _six_bytes(mac: object) -> bytes:
    if isinstance(mac, str):
        address = bytes.fromhex(mac.replace(":", ""))
        if len(address) == 6:
            return address
    raise ValueError


def _in_c(queue: Queue | None) -> Virtqueue[Any] | None:
    if queue is not None and not isinstance(queue, Virtqueue):
        raise InternalError(f"Queue {queue.index} is not one in C, which a network needs")
    return queue
