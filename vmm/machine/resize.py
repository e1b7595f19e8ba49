"""Another amount of vCPUs, RAM or balloon: what becomes of the machine and of its configuration.

The three are changed one after the other, and the configuration with each: what was done before one
that fails stays done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from vmm.boot.layout import ram_ranges
from vmm.config.validation import validate
from vmm.errors import ConfigError
from vmm.machine.zones import default_zone, lay_out

if TYPE_CHECKING:
    from vmm.config.requests import VmResize
    from vmm.config.vm import VmConfig


class Resizable(Protocol):
    """The machine, as far as it can be resized."""

    @property
    def ram_size(self) -> int:
        """The RAM it has, in bytes, whatever a balloon holds of it."""

    async def resize_vcpus(self, count: int) -> None:
        """Have so many vCPUs, or ask the guest for those that are too many."""

    async def grow_ram(self, size: int) -> None:
        """Plug in more RAM, in bytes; a machine without room for any stays as it is."""

    def resize_balloon(self, size: int) -> None:
        """Ask the guest for so many bytes in all."""


async def resize(
    config: VmConfig,
    machine: Resizable | None,
    sizes: VmResize,
    store: Callable[[VmConfig], None],
) -> None:
    """Give the VM these sizes, and store the configuration after each change.

    ``machine`` is None before boot. Raises: ConfigError (caller), PendingError, HostError.
    """
    if sizes.desired_vcpus is not None:
        config = await _with_vcpus(config, machine, sizes.desired_vcpus)
        store(config)
    if sizes.desired_ram is not None:
        config = await _with_ram(config, machine, sizes.desired_ram)
        store(config)
    if sizes.desired_balloon is not None:
        store(_with_balloon(config, machine, sizes.desired_balloon))


async def _with_vcpus(config: VmConfig, machine: Resizable | None, vcpus: int) -> VmConfig:
    cpus = config.cpus.model_copy(update={"boot_vcpus": vcpus})
    config = config.model_copy(update={"cpus": cpus})
    validate(config)
    if machine is not None:
        await machine.resize_vcpus(vcpus)
    return config


async def _with_ram(config: VmConfig, machine: Resizable | None, ram: int) -> VmConfig:
    """RAM that cannot come now, or go, does so at the next boot, which must not fail for it."""
    memory = config.memory.model_copy(update={"size": ram})
    if not memory.zones:
        lay_out([default_zone(memory)], ram_ranges(ram))
    if machine is not None:
        if config.memory.zones:
            raise ConfigError(
                f"desired_ram is {ram}, and the RAM is in zones (memory.zones, --memory-zone), "
                "of which nothing says which is meant; use vm.resize-zone"
            )
        more = ram - machine.ram_size
        if more > 0:
            await machine.grow_ram(more)
    return config.model_copy(update={"memory": memory})


def _with_balloon(config: VmConfig, machine: Resizable | None, size: int) -> VmConfig:
    if machine is not None:
        machine.resize_balloon(size)
    if config.balloon is None:
        return config
    return config.model_copy(update={"balloon": config.balloon.model_copy(update={"size": size})})
