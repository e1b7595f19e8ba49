"""Rules for what is taken from the host: VFIO devices, files as memory, rate limits, Landlock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vmm.config.platform import DEFAULT_PLATFORM, PlatformConfig
from vmm.config.rules.problem import Problem, at
from vmm.config.units import is_power_of_two
from vmm.config.vm import VmConfig

if TYPE_CHECKING:
    from vmm.config.device import DeviceConfig

LAST_BAR = 5
ACCESS_LETTERS = frozenset("rw")


def problems(config: VmConfig, path_exists: Callable[[str], bool] | None) -> Iterator[Problem]:
    """Yield what is wrong with what the host lends."""
    yield from _rate_limit_groups(config)
    yield from _devices(config)
    yield from _pmem(config)
    yield from _ivshmem(config)
    yield from _landlock(config, path_exists)


def _rate_limit_groups(config: VmConfig) -> Iterator[Problem]:
    for index, group in enumerate(config.rate_limit_groups or ()):
        limits = group.rate_limiter_config
        path = f"rate_limit_groups[{index}]"
        if not group.id:
            yield Problem(
                f"{at(path, group, 'id')} is empty: Invalid rate-limiter group; give it a name"
            )
        if limits.bandwidth is None and limits.ops is None:
            yield Problem(
                f"{path}.rate_limiter_config ({group.FLAG} bw_size=, ops_size=) limits nothing: "
                "Invalid rate-limiter group; give bandwidth, ops or both"
            )


def _devices(config: VmConfig) -> Iterator[Problem]:
    platform = config.platform or DEFAULT_PLATFORM
    taken: dict[str, str] = {}
    for index, device in enumerate(config.devices or ()):
        path = f"devices[{index}]"
        if device.path is not None:
            if device.path in taken:
                yield Problem(
                    f"{at(path, device, 'path')}: Device path {device.path} is not unique, "
                    f"{taken[device.path]} has it; give each device once",
                    is_duplicate=True,
                )
            taken.setdefault(device.path, path)
        yield from _device(path, device, platform)


def _device(path: str, device: DeviceConfig, platform: PlatformConfig) -> Iterator[Problem]:
    if device.path is None and device.fd is None:
        yield Problem(f"{at(path, device, 'path')} is missing, and so is fd; give one of them")
    if device.path is not None and device.fd is not None:
        yield Problem(
            f"{at(path, device, 'path')} is {device.path} beside fd {device.fd}; give one of them"
        )
    if device.fd is not None and platform.iommufd_fd is None:
        yield Problem(
            f"{at(path, device, 'fd')} is {device.fd} without platform.iommufd_fd "
            "(--platform iommufd_fd=), which it belongs to; give both"
        )
    if device.x_nv_gpudirect_clique is not None and not platform.vfio_p2p_dma:
        yield Problem(
            f"{at(path, device, 'x_nv_gpudirect_clique')} is {device.x_nv_gpudirect_clique} while "
            "platform.vfio_p2p_dma (--platform vfio_p2p_dma=) is off; turn it on"
        )
    for bar in device.x_exclude_mmap_bars:
        if bar > LAST_BAR:
            yield Problem(
                f"{at(path, device, 'x_exclude_mmap_bars')} has {bar}; BARs are 0 to {LAST_BAR}"
            )


def _pmem(config: VmConfig) -> Iterator[Problem]:
    from vmm.config.pmem import ALIGNMENT_BYTES

    for index, pmem in enumerate(config.pmem or ()):
        size = pmem.size
        if size is not None and (size == 0 or size % ALIGNMENT_BYTES):
            yield Problem(
                f"{at(f'pmem[{index}]', pmem, 'size')} is {size}: the size of persistent memory "
                f"must be a positive multiple of {ALIGNMENT_BYTES} bytes; round it up"
            )


def _ivshmem(config: VmConfig) -> Iterator[Problem]:
    if config.ivshmem is None:
        return
    from vmm.config.ivshmem import LEAST_SIZE

    size = config.ivshmem.size
    if size < LEAST_SIZE or not is_power_of_two(size):
        yield Problem(
            f"{at('ivshmem', config.ivshmem, 'size')} is {size}: the size of shared memory must be "
            f"a power of two of at least {LEAST_SIZE} bytes; round it up"
        )


def _landlock(config: VmConfig, path_exists: Callable[[str], bool] | None) -> Iterator[Problem]:
    for index, rule in enumerate(config.landlock_rules or ()):
        path = f"landlock_rules[{index}]"
        if not rule.access or not set(rule.access) <= ACCESS_LETTERS:
            yield Problem(f"{at(path, rule, 'access')} is {rule.access!r}; give r, w or rw")
        if path_exists is not None and not path_exists(rule.path):
            yield Problem(
                f"{at(path, rule, 'path')} is {rule.path}, which does not exist; create it first"
            )
