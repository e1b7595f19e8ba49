"""What of a packet's work may be left to the other end of a tap.

Source: Linux, include/uapi/linux/if_tun.h.
"""

from __future__ import annotations

from enum import IntFlag
from typing import Final

HEADER_BYTES: Final = 12
"""Of virtio-net, before every packet of a tap: what is left undone in that."""


class Offload(IntFlag):
    """What the host may leave undone in packets that it gives to the tap (TUN_F_…)."""

    CSUM = 1
    TSO4 = 2
    TSO6 = 4
    TSO_ECN = 8
    UFO = 16
