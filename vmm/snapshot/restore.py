"""Bringing a VM back from a snapshot: what the files say, and the source of its machine."""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING

import trio

from vmm.config.changes import with_nodes
from vmm.config.document import parse_document
from vmm.config.requests import MemoryRestoreMode
from vmm.config.rules.restore import validate_restore
from vmm.config.vm import VmConfig
from vmm.errors import ConfigError, UnsupportedError
from vmm.machine.brought_back import mark_plugged
from vmm.snapshot.descriptors import given_to, with_descriptors, with_lost_descriptors
from vmm.snapshot.files import CONFIG, MEMORY, STATE, read_text
from vmm.snapshot.memory_file import open_memory, read_memory
from vmm.snapshot.paging import read_on_demand
from vmm.snapshot.state import MachineState
from vmm.snapshot.url import path_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm.config.requests import RestoreConfig
    from vmm.kvm_cffi import Vm
    from vmm.machine.memory import GuestMemory
    from vmm.machine.saved import SavedMemory

logger = logging.getLogger(__name__)


class Snapshot:
    """A snapshot that was read, but for its RAM: a MachineSource.

    ``descriptors`` came with the request, for its networks. Raises: ConfigError when it is not
    whole or not of this version (caller), HostError.
    """

    def __init__(self, request: RestoreConfig, descriptors: Sequence[int] = ()) -> None:
        validate_restore(request)
        self._request = request
        self._folder = path_of(request.source_url, "source_url", "a snapshot's directory")
        document = read_text(self._folder, CONFIG)
        try:
            config = parse_document(VmConfig, document)
        except ConfigError as error:
            raise ConfigError(f"{self._folder}/{CONFIG} is no configuration") from error
        if request.vfio_fds or request.iommufd_fd is not None:
            raise UnsupportedError(
                "vfio_fds and iommufd_fd (--restore vfio_fds=…) are for devices by VFIO, which are "
                "not in this version of the VMM; leave them out"
            )
        config = with_lost_descriptors(config, json.loads(document))
        validate_restore(request, config)
        config = with_descriptors(config, given_to(request.net_fds, descriptors))
        self.config = with_nodes(config, request.zone_updates or ())
        try:
            self._state = MachineState.from_json(read_text(self._folder, STATE))
        except ConfigError as error:
            raise ConfigError(f"{self._folder}/{STATE} cannot be read") from error

    @property
    def memory(self) -> SavedMemory:
        """How its RAM is laid out."""
        return self._state.memory

    @property
    def memory_fds(self) -> Mapping[int, int]:
        """None: the RAM is read from its file."""
        return {}

    async def provide(self, memory: GuestMemory, vm: Vm) -> MachineState:
        """Read the RAM, and give the state. Raises: ConfigError (caller), HostError."""
        path = os.path.join(self._folder, MEMORY)
        fd = open_memory(self._folder, MEMORY, memory)
        try:
            if self._request.memory_restore_mode is MemoryRestoreMode.ONDEMAND:
                mark_plugged(memory, self._state)  # What is plugged is read.
                read_on_demand(fd, memory)
                return self._state
            for _ in memory.populate(unasked=self._request.prefault):
                await trio.lowlevel.checkpoint()
            await read_memory(fd, path, memory)
        finally:
            os.close(fd)
        return self._state
