"""Rules for what the machine itself is: payload, consoles, CPUs, platform, balloon."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vmm.config.console import ConsoleConfig, ConsoleMode, DebugConsoleConfig, SerialConfig
from vmm.config.cpus import CpusConfig, CpuTopology
from vmm.config.pci import PciSegmentConfig
from vmm.config.platform import DEFAULT_PLATFORM, PlatformConfig
from vmm.config.rules.problem import Problem, at
from vmm.config.vm import VmConfig

if TYPE_CHECKING:
    from vmm.config.fw_cfg import FwCfgConfig

logger = logging.getLogger("vmm.config")

MAX_VCPUS = 8192
MAX_THREADS_PER_CORE = 2
MAX_PCI_SEGMENTS = 96
MAX_IOMMU_ADDRESS_BITS = 64
HOST_DATA_DIGITS = 64


def problems(config: VmConfig) -> Iterator[Problem]:
    """Yield what is wrong with the machine."""
    yield from _payload(config)
    yield from _consoles(config)
    yield from _cpus(config.cpus)
    yield from _platform(config.platform or DEFAULT_PLATFORM)
    yield from _pci_segments(config)
    yield from _balloon(config)


def _payload(config: VmConfig) -> Iterator[Problem]:
    payload = config.payload
    if payload is None or not (payload.kernel or payload.firmware or payload.igvm):
        yield Problem(
            "payload (--kernel, --firmware): Payload configuration is not bootable: No bootitem "
            "provided: neither firmware nor kernel; give payload.kernel or payload.firmware"
        )
        return
    if payload.firmware and payload.kernel:
        yield Problem(
            f"payload.kernel (--kernel) is {payload.kernel} beside payload.firmware (--firmware) "
            f"{payload.firmware}: Specifying a kernel is not supported when a firmware is "
            "provided; give one of them"
        )
    if payload.firmware and payload.igvm:
        yield Problem(
            f"payload.igvm (--igvm) is {payload.igvm} beside payload.firmware (--firmware) "
            f"{payload.firmware}: an IGVM image brings its own firmware; give one of them"
        )
    if payload.firmware and (payload.cmdline or payload.initramfs):
        logger.warning("The firmware does not take payload.cmdline or payload.initramfs: unused")
    if payload.fw_cfg_config is not None:
        yield from _fw_cfg(payload.fw_cfg_config)
    digits = payload.host_data
    if digits is not None and not _is_hex(digits, HOST_DATA_DIGITS):
        yield Problem(
            f"payload.host_data (--host-data) has {len(digits)} characters; "
            f"give exactly {HOST_DATA_DIGITS} hexadecimal digits"
        )


def _fw_cfg(told: FwCfgConfig) -> Iterator[Problem]:
    from vmm.config.fw_cfg import MOST_NAME_BYTES

    names: set[str] = set()
    for index, item in enumerate(told.items or ()):
        place = f"payload.fw_cfg_config.items[{index}] (--fw-cfg-config items=)"
        if (item.file is None) == (item.string is None):
            yield Problem(f"{place}: an item has file or string; give one of them")
        if not 0 < (length := len(item.name.encode())) <= MOST_NAME_BYTES:
            yield Problem(
                f"{place}: the name has {length} bytes and must have from 1 to {MOST_NAME_BYTES}; "
                "choose another name"
            )
        if item.name in names:
            yield Problem(
                f"{place}: Identifier {item.name} is not unique; choose another name",
                is_duplicate=True,
            )
        names.add(item.name)


def _is_hex(text: str, digits: int) -> bool:
    return len(text) == digits and set(text.lower()) <= set("0123456789abcdef")


def _consoles(config: VmConfig) -> Iterator[Problem]:
    consoles: dict[str, SerialConfig | ConsoleConfig | DebugConsoleConfig] = {
        "serial": config.serial,
        "console": config.console,
        "debug_console": config.debug_console,
    }
    for path, console in consoles.items():
        if console.mode is ConsoleMode.FILE and not console.file:
            yield Problem(
                f"{at(path, console, 'file')} is missing: "
                "Path missing when using file console mode; give the file or another mode"
            )
        if console.mode is not ConsoleMode.SOCKET:
            continue
        if not isinstance(console, SerialConfig):
            yield Problem(
                f"{path}.mode ({console.FLAG} socket=) is Socket: No socket option support for "
                f"console device; use {SerialConfig.FLAG} socket= or another mode"
            )
        elif not console.socket:
            yield Problem(
                f"{at(path, console, 'socket')} is missing: "
                "Path missing when using socket console mode; give the path or another mode"
            )
    asked = [path for path in consoles if path in config.model_fields_set]
    if sum(consoles[path].mode is ConsoleMode.TTY for path in asked) > 1:
        logger.warning("Several consoles share the terminal: %s", ", ".join(asked))


def _cpus(cpus: CpusConfig) -> Iterator[Problem]:
    if cpus.max_vcpus < cpus.boot_vcpus:
        yield Problem(
            f"{at('cpus', cpus, 'max_vcpus')}: Max CPUs ({cpus.max_vcpus}) lower than boot CPUs "
            f"({cpus.boot_vcpus}); raise max_vcpus or lower boot_vcpus"
        )
    if cpus.max_vcpus > MAX_VCPUS:
        yield Problem(
            f"{at('cpus', cpus, 'max_vcpus')}: Too many CPUs: specified {cpus.max_vcpus} but "
            f"{MAX_VCPUS} is the limit; ask for fewer"
        )
    if cpus.topology is not None:
        yield from _topology(cpus, cpus.topology)


def _topology(cpus: CpusConfig, topology: CpuTopology) -> Iterator[Problem]:
    place = at("cpus", cpus, "topology")
    parts = [int(getattr(topology, name)) for name in CpuTopology.model_fields]
    threads, cores, dies, packages = parts
    if 0 in parts:
        yield Problem(
            f"{place}: No part of the topology may be zero, given "
            f"{':'.join(map(str, parts))}; give 1 or more for each"
        )
    if threads > MAX_THREADS_PER_CORE:
        yield Problem(
            f"{place}: Too many threads per core: specified {threads} but "
            f"{MAX_THREADS_PER_CORE} is the limit; give 1 or {MAX_THREADS_PER_CORE}"
        )
    total = threads * cores * dies * packages
    if total != cpus.max_vcpus:
        yield Problem(
            f"{place}: The product of the topology ({total}) must equal max_vcpus "
            f"({cpus.max_vcpus}); change either"
        )


def _platform(platform: PlatformConfig) -> Iterator[Problem]:
    segments = platform.num_pci_segments
    if not 1 <= segments <= MAX_PCI_SEGMENTS:
        yield Problem(
            f"{at('platform', platform, 'num_pci_segments')}: Number of PCI segments ({segments}) "
            f"not in range; give 1 to {MAX_PCI_SEGMENTS}"
        )
    for segment in platform.iommu_segments or ():
        if segment >= segments:
            yield Problem(
                f"{at('platform', platform, 'iommu_segments')}: Invalid PCI segment id: {segment}; "
                f"give one below num_pci_segments ({segments})"
            )
    bits = platform.iommu_address_width_bits
    if bits > MAX_IOMMU_ADDRESS_BITS:
        yield Problem(
            f"{at('platform', platform, 'iommu_address_width_bits')}: IOMMU address width ({bits}) "
            f"not in range; give at most {MAX_IOMMU_ADDRESS_BITS}"
        )
    if platform.iommufd_fd is not None and not platform.iommufd:
        yield Problem(
            f"{at('platform', platform, 'iommufd_fd')} is {platform.iommufd_fd} without iommufd; "
            "turn iommufd on or leave the descriptor out"
        )


def _pci_segments(config: VmConfig) -> Iterator[Problem]:
    count = (config.platform or DEFAULT_PLATFORM).num_pci_segments
    described: set[int] = set()
    for index, segment in enumerate(config.pci_segments or ()):
        path = f"pci_segments[{index}]"
        if segment.pci_segment in described:
            yield Problem(
                f"{at(path, segment, 'pci_segment')}: PCI segment {segment.pci_segment} is "
                "described twice; describe each once",
                is_duplicate=True,
            )
        described.add(segment.pci_segment)
        if segment.pci_segment >= count:
            yield Problem(
                f"{at(path, segment, 'pci_segment')}: Invalid PCI segment id: "
                f"{segment.pci_segment}; give one below platform.num_pci_segments ({count})"
            )
        for name in ("mmio32_aperture_weight", "mmio64_aperture_weight"):
            if getattr(segment, name) == 0:
                yield Problem(
                    f"{at(path, PciSegmentConfig, name)}: Invalid PCI segment aperture weight: 0; "
                    "give 1 or more"
                )


def _balloon(config: VmConfig) -> Iterator[Problem]:
    ram = config.total_memory()
    if config.balloon is not None and config.balloon.size >= ram:
        yield Problem(
            f"{at('balloon', config.balloon, 'size')}: Balloon size ({config.balloon.size}) "
            f"greater than RAM ({ram}); leave the guest some memory"
        )
