"""Rules for devices with queues: disks, networks and what vhost-user back ends serve."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vmm.config.rules.problem import Problem, at
from vmm.config.units import is_power_of_two
from vmm.config.vm import VmConfig

if TYPE_CHECKING:
    from vmm.config.disk import DiskConfig
    from vmm.config.fs import FsConfig
    from vmm.config.generic_vhost_user import GenericVhostUserConfig
    from vmm.config.net import NetConfig

MAX_QUEUE_SIZE = 32768
MAX_SERIAL_BYTES = 20
MAX_TAG_BYTES = 36
MIN_MTU = 1280
LAST_STANDARD_DESCRIPTOR = 2


def problems(config: VmConfig) -> Iterator[Problem]:
    """Yield what is wrong with the devices that have queues."""
    for index, disk in enumerate(config.disks or ()):
        yield from _disk(f"disks[{index}]", disk, config)
    for index, net in enumerate(config.net or ()):
        yield from _net(f"net[{index}]", net, config)
    for index, fs in enumerate(config.fs or ()):
        yield from _fs(f"fs[{index}]", fs, config)
    for index, device in enumerate(config.generic_vhost_user or ()):
        yield from _generic(f"generic_vhost_user[{index}]", device, config)
    for index, user_device in enumerate(config.user_devices or ()):
        yield from _shareable(
            at(f"user_devices[{index}]", user_device, "socket"), "user devices", config
        )


def _disk(path: str, disk: DiskConfig, config: VmConfig) -> Iterator[Problem]:
    if disk.path is not None and disk.vhost_socket is not None:
        yield Problem(
            f"{at(path, disk, 'path')}: Disk path and vhost socket both provided "
            f"({disk.path}, {disk.vhost_socket}); give one of them"
        )
    if disk.path is None and not disk.vhost_user:
        yield Problem(f"{at(path, disk, 'path')} is missing; give the image of the disk")
    limited = disk.rate_limiter_config is not None or disk.rate_limit_group is not None
    if disk.vhost_user:
        yield from _vhost_user(path, disk, config, is_limited=limited)
    yield from _queue_count(at(path, disk, "num_queues"), disk.num_queues, config)
    yield from _queue_size(at(path, disk, "queue_size"), disk.queue_size)
    if disk.queue_size <= 2:
        yield Problem(
            f"{at(path, disk, 'queue_size')}: Block queue size must be greater than 2: "
            f"{disk.queue_size}; give 4 or more"
        )
    yield from _disk_limit(path, disk, config)
    if disk.serial is not None and (length := len(disk.serial.encode())) > MAX_SERIAL_BYTES:
        yield Problem(
            f"{at(path, disk, 'serial')}: Block device serial length ({length}) exceeds maximum "
            f"allowed length ({MAX_SERIAL_BYTES}); shorten it"
        )


def _disk_limit(path: str, disk: DiskConfig, config: VmConfig) -> Iterator[Problem]:
    group = disk.rate_limit_group
    if group is None:
        return
    if disk.rate_limiter_config is not None:
        yield Problem(
            f"{at(path, disk, 'rate_limit_group')} is {group} beside a rate_limiter_config of the "
            "disk's own; give one of them"
        )
    if all(each.id != group for each in config.rate_limit_groups or ()):
        yield Problem(
            f"{at(path, disk, 'rate_limit_group')}: Rate limit group {group} does not exist; "
            "add it to rate_limit_groups (--rate-limit-group)"
        )


def _net(path: str, net: NetConfig, config: VmConfig) -> Iterator[Problem]:
    if net.vhost_user:
        yield from _vhost_user(path, net, config, is_limited=net.rate_limiter_config is not None)
    if net.num_queues < 2:
        yield Problem(
            f"{at(path, net, 'num_queues')}: Number of queues ({net.num_queues}) to virtio_net "
            "should be higher than 2; give 2 for each pair"
        )
    yield from _descriptors(path, net)
    yield from _queue_count(at(path, net, "num_queues"), net.num_queues // 2, config)
    yield from _queue_size(at(path, net, "queue_size"), net.queue_size)
    if net.mtu is not None and net.mtu < MIN_MTU:
        yield Problem(
            f"{at(path, net, 'mtu')}: Provided MTU {net.mtu} is lower than {MIN_MTU} "
            "(expected by VIRTIO specification); raise it"
        )
    for name in ("offload_tso", "offload_ufo"):
        if getattr(net, name) and not net.offload_csum:
            yield Problem(
                f"{at(path, net, name)}: is on without offload_csum, which it needs; "
                f"turn {name} off or offload_csum on"
            )
    if (net.ip is None) != (net.mask is None):
        given, absent = ("ip", "mask") if net.mask is None else ("mask", "ip")
        yield Problem(
            f"{at(path, net, given)} is {getattr(net, given)} without {absent}; give both or none"
        )


def _descriptors(path: str, net: NetConfig) -> Iterator[Problem]:
    if net.fds is None:
        return
    if len(net.fds) * 2 != net.num_queues:
        yield Problem(
            f"{at(path, net, 'fds')}: Number of queues ({net.num_queues}) does not match the "
            f"number of FDs ({len(net.fds) * 2}); give one descriptor for two queues"
        )
    for fd in net.fds:
        if fd <= LAST_STANDARD_DESCRIPTOR:
            yield Problem(
                f"{at(path, net, 'fds')}: Reserved fd number (<= 2): {fd}; "
                "pass the tap as a higher number"
            )


def _fs(path: str, fs: FsConfig, config: VmConfig) -> Iterator[Problem]:
    yield from _shareable(at(path, fs, "socket"), "vhost-user", config)
    yield from _queue_count(at(path, fs, "num_queues"), fs.num_queues, config)
    yield from _queue_size(at(path, fs, "queue_size"), fs.queue_size)
    if (length := len(fs.tag.encode())) > MAX_TAG_BYTES:
        yield Problem(
            f"{at(path, fs, 'tag')}: the tag has {length} bytes, {MAX_TAG_BYTES} is the limit; "
            "shorten it"
        )


def _generic(path: str, device: GenericVhostUserConfig, config: VmConfig) -> Iterator[Problem]:
    from vmm.config.generic_vhost_user import REFUSED_TYPES, VIRTIO_DEVICE_TYPES

    yield from _shareable(at(path, device, "socket"), "vhost-user", config)
    for size in device.queue_sizes:
        yield from _queue_size(at(path, device, "queue_sizes"), size)
    for name in REFUSED_TYPES:
        if device.device_type == VIRTIO_DEVICE_TYPES[name]:
            yield Problem(
                f"{at(path, device, 'device_type')} is {device.device_type} ({name}), which is "
                "not supported as a generic vhost-user device; use another type"
            )


def _vhost_user(
    path: str, device: DiskConfig | NetConfig, config: VmConfig, *, is_limited: bool
) -> Iterator[Problem]:
    place = at(path, device, "vhost_user")
    yield from _shareable(place, "vhost-user", config)
    if device.vhost_socket is None:
        yield Problem(
            f"{at(path, device, 'vhost_socket')} is missing: "
            "No socket provided when using vhost-user; give the back end's socket"
        )
    if is_limited:
        yield Problem(
            f"{place}: Rate limiting is not supported with vhost-user; limit in the back end"
        )
    if device.iommu:
        yield Problem(
            f"{at(path, device, 'iommu')}: Device does not support being placed behind IOMMU; "
            "leave iommu off with vhost_user"
        )


def _shareable(place: str, user: str, config: VmConfig) -> Iterator[Problem]:
    if not config.memory.is_shareable:
        yield Problem(
            f"{place}: Using {user} requires using shared memory or huge pages; "
            "set memory.shared (--memory shared=on)"
        )


def _queue_count(place: str, queues: int, config: VmConfig) -> Iterator[Problem]:
    vcpus = config.cpus.boot_vcpus
    if queues > vcpus:
        yield Problem(
            f"{place}: Queue count ({queues}) must not exceed boot vCPUs "
            f"({vcpus}); lower num_queues or raise cpus.boot_vcpus (--cpus boot=)"
        )


def _queue_size(place: str, size: int) -> Iterator[Problem]:
    if not is_power_of_two(size) or size > MAX_QUEUE_SIZE:
        yield Problem(
            f"{place}: Queue size must be a power of 2 no greater than {MAX_QUEUE_SIZE}: {size}; "
            "give such a number"
        )
