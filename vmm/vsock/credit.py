"""The flow control of one stream: how much each side may send before the other has taken it.

All counters are modulo 2^32. Spec: Virtio 1.2, section 5.10.6.3.
"""

from __future__ import annotations

from typing import Final

ROOM_BYTES: Final = 128 << 10
"""What is kept of a guest's stream while its host peer does not read."""

_MASK: Final = 0xFFFF_FFFF


class Credit:
    """What the two sides have told each other of one stream."""

    def __init__(self) -> None:
        self._guest_room = 0
        self._guest_taken = 0
        self._sent = 0
        self._taken = 0
        self._told = 0

    def hear(self, buf_alloc: int, fwd_cnt: int) -> None:
        """Take what a packet of the guest says of its room."""
        self._guest_room = buf_alloc
        self._guest_taken = fwd_cnt

    @property
    def allowance(self) -> int:
        """Bytes that may be sent to the guest."""
        return max(0, self._guest_room - (self._sent - self._guest_taken & _MASK))

    def sent(self, count: int) -> None:
        """So many bytes were sent to the guest."""
        self._sent = self._sent + count & _MASK

    def taken(self, count: int) -> None:
        """So many bytes of the guest's have left the room."""
        self._taken = self._taken + count & _MASK

    @property
    def is_stale(self) -> bool:
        """Whether half the room has become free since the guest was told."""
        return self._taken - self._told & _MASK >= ROOM_BYTES // 2

    def tell(self) -> tuple[int, int]:
        """The two numbers for a packet to the guest: the room, and what has left it."""
        self._told = self._taken
        return ROOM_BYTES, self._taken
