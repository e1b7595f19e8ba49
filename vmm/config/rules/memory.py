"""Rules for memory: what backs it, and how it grows."""

from __future__ import annotations

from collections.abc import Iterator

from vmm.config.memory import (
    MEM_ALIGNMENT,
    MEM_BLOCK,
    HotplugMethod,
    MemoryConfig,
    MemoryZoneConfig,
)
from vmm.config.rules.problem import Problem, at
from vmm.config.units import is_power_of_two


def problems(memory: MemoryConfig) -> Iterator[Problem]:
    """Yield what is wrong with the memory and its zones."""
    is_mem = memory.hotplug_method == HotplugMethod.VIRTIO_MEM
    yield from _backing("memory", memory)
    yield from _growth("memory", memory, is_mem=is_mem)
    if is_mem and memory.hotplug_size and not memory.size:
        yield Problem(
            f"{at('memory', memory, 'hotplug_size')} is {memory.hotplug_size}, and memory.size is "
            "0: virtio-mem adds to a zone; give the zone that is to grow a hotplug_size"
        )
    for index, zone in enumerate(memory.zones or ()):
        path = f"memory.zones[{index}]"
        yield from _backing(path, zone)
        yield from _growth(path, zone, is_mem=is_mem)
        if zone.hotplug_size and not is_mem:
            yield Problem(
                f"{at(path, zone, 'hotplug_size')} is {zone.hotplug_size}, and "
                f"{at('memory', memory, 'hotplug_method')} is {memory.hotplug_method}: a zone "
                f"grows by virtio-mem alone; make the method {HotplugMethod.VIRTIO_MEM}"
            )


def _backing(path: str, memory: MemoryConfig | MemoryZoneConfig) -> Iterator[Problem]:
    size = memory.hugepage_size
    if size is not None and not memory.hugepages:
        yield Problem(
            f"{at(path, memory, 'hugepage_size')} is {size} without hugepages: Huge page size "
            "specified but huge pages not enabled; turn hugepages on or leave the size out"
        )
    if size is not None and not is_power_of_two(size):
        yield Problem(
            f"{at(path, memory, 'hugepage_size')}: Huge page size is not power of 2: {size}; "
            "give one the host has, such as 2M"
        )
    if memory.mergeable and memory.shared:
        yield Problem(
            f"{at(path, memory, 'mergeable')}: Memory cannot be both mergeable and shared; "
            "turn one of them off"
        )


def _growth(
    path: str, memory: MemoryConfig | MemoryZoneConfig, *, is_mem: bool
) -> Iterator[Problem]:
    """Yield what is wrong with the room to grow and with how much of it is used at boot."""
    room, grown = memory.hotplug_size or 0, memory.hotplugged_size or 0
    page = memory.hugepage_size or 0
    alignment, block = max(MEM_ALIGNMENT, page), max(MEM_BLOCK, page)
    if is_mem and room % alignment:
        yield Problem(
            f"{at(path, memory, 'hotplug_size')} is {room}, no multiple of {alignment}, the least "
            "that a guest can use of virtio-mem; round it up"
        )
    if grown and not is_mem:
        yield Problem(
            f"{at(path, memory, 'hotplugged_size')} is {grown}, which is for virtio-mem alone; "
            "leave it out, or give memory.hotplug_method virtio-mem"
        )
    elif grown > room:
        yield Problem(
            f"{at(path, memory, 'hotplugged_size')} is {grown}, more than hotplug_size, {room}; "
            "lower it or raise that"
        )
    elif grown % block:
        yield Problem(
            f"{at(path, memory, 'hotplugged_size')} is {grown}, no multiple of {block}, the bytes "
            "of a block; round it up"
        )
