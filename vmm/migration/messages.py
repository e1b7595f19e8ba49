"""What the Config request carries: the machine before its memory and its state come."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from pydantic import TypeAdapter

from vmm.config.document import parse_object
from vmm.config.vm import VmConfig
from vmm.errors import ConfigError, PeerError
from vmm.kvm_cffi.structs import CpuidEntry
from vmm.machine.brought_back import layout_of
from vmm.machine.saved import SavedMemory
from vmm.snapshot.descriptors import with_lost_descriptors

if TYPE_CHECKING:
    from vmm.machine.interface import Machine

_CPUID = TypeAdapter(tuple[CpuidEntry, ...])


class Description(NamedTuple):
    """A machine's configuration, the processors' features, and how its RAM is laid out.

    Of one that was decoded, networks show how many descriptors they had.
    """

    config: VmConfig
    common_cpuid: tuple[CpuidEntry, ...]
    memory: SavedMemory

    def encode(self) -> bytes:
        """Give its JSON."""
        parts = {
            "vm_config": self.config.to_json(),
            "common_cpuid": [list(entry) for entry in self.common_cpuid],
            "memory_manager_data": {"layout": self.memory.to_json()},
        }
        return json.dumps(parts, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes) -> Description:
        """Read it. Raises: PeerError for what is none."""
        try:
            parts = json.loads(data)
            config = parse_object(VmConfig, parts["vm_config"])
            return cls(
                with_lost_descriptors(config, parts["vm_config"]),
                _CPUID.validate_python(parts["common_cpuid"]),
                SavedMemory.from_json(parts["memory_manager_data"]["layout"], "RAM"),
            )
        except (ValueError, RecursionError, KeyError, TypeError, ConfigError) as error:
            reason = str(error) or type(error).__name__
            raise PeerError(
                f"The source's description of its VM cannot be read: {reason}"
            ) from None


def describe(machine: Machine, config: VmConfig) -> Description:
    """Describe a machine to the VMM that it is to move to."""
    layout = layout_of(machine.memory, machine.cpus.phys_bits)
    return Description(config, machine.cpus.common, layout)
