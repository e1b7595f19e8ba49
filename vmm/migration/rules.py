"""What the two requests may ask for, checked before anything is opened.

Spec: Cloud Hypervisor migration, section API.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmm.config.requests import MigrationMode
from vmm.config.rules.restore import validate_received
from vmm.errors import ConfigError, UnsupportedError
from vmm.machine.zones import zones_of
from vmm.migration.address import Address, UnixAddress, parse_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.config.memory import MemoryConfig
    from vmm.config.requests import ReceiveMigrationData, SendMigrationData
    from vmm.config.vm import VmConfig

RECEIVER_FILES = ("ca-cert.pem", "server-cert.pem", "server-key.pem")
SENDER_FILES = ("ca-cert.pem", "client-cert.pem", "client-key.pem")


def check_send(data: SendMigrationData, config: VmConfig) -> Address:
    """Check what is asked of a source whose VM has this configuration; where the VM goes.

    Raises: ConfigError (caller) with every problem there is.
    """
    address = parse_url("destination_url", data.destination_url)
    is_unix = isinstance(address, UnixAddress)
    is_postcopy = data.memory_mode is MigrationMode.POSTCOPY
    problems = [
        problem
        for is_wrong, problem in (
            (
                data.connections > 1 and is_unix,
                f"connections is {data.connections} and {data.destination_url} is a unix socket, "
                "which has one; use tcp or connections=1",
            ),
            (
                data.local and not is_unix,
                f"local hands memory over as descriptors, which {data.destination_url} cannot "
                "carry; use a unix socket or leave local out",
            ),
            (
                data.preserve_source and not data.local,
                "preserve_source keeps memory that both VMMs share; it needs local",
            ),
            (is_postcopy and data.local, "memory_mode is Postcopy and local is on; choose one"),
            (
                is_postcopy and data.connections > 1,
                f"memory_mode is Postcopy and connections is {data.connections}; it must be 1",
            ),
            (
                is_postcopy and is_prefaulted(config.memory),
                "memory_mode is Postcopy and prefault is on (memory, memory.zones); choose one",
            ),
            (
                data.local and not all(zone.is_file for zone in zones_of(config.memory)),
                "local hands memory over as descriptors, and not all of this VM's RAM has one; "
                "boot it with shared=on, or hugepages=on without a file (memory, memory.zones)",
            ),
        )
        if is_wrong
    ]
    problems += _tls_problems(data.tls_dir, SENDER_FILES, is_unix=is_unix)
    if problems:
        raise ConfigError(*problems)
    return address


def check_receive(data: ReceiveMigrationData) -> Address:
    """Check what is asked of a destination; where it listens.

    Raises: ConfigError (caller) with every problem there is.
    """
    address = parse_url("receiver_url", data.receiver_url)
    is_unix = isinstance(address, UnixAddress)
    problems = _tls_problems(data.tls_dir, RECEIVER_FILES, is_unix=is_unix)
    if problems:
        raise ConfigError(*problems)
    if data.vfio_fds or data.iommufd_fd is not None:
        raise UnsupportedError(
            "vfio_fds and iommufd_fd are for devices that are passed through, which this version "
            "of the VMM does not have; leave them out"
        )
    validate_received(data)
    return address


def is_prefaulted(memory: MemoryConfig) -> bool:
    """Whether any RAM is to be there from the start."""
    return memory.prefault or any(zone.prefault for zone in memory.zones or ())


def _tls_problems(folder: str | None, names: Sequence[str], *, is_unix: bool) -> list[str]:
    if folder is None:
        return []
    if is_unix:
        return ["tls_dir is given and the URL is a unix socket, which needs no TLS; leave it out"]
    missing = [name for name in names if not _is_readable(os.path.join(folder, name))]
    if not missing:
        return []
    return [f"tls_dir {folder} has no readable {', '.join(missing)}; it must hold all of {names}"]


def _is_readable(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.R_OK)
