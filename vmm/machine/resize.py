"""Another amount of vCPUs, RAM or balloon: what becomes of the machine and of its configuration.

The three are changed one after the other, and the configuration with each: what was done before one
that fails stays done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from vmm.boot.layout import ram_ranges
from vmm.config.memory import HotplugMethod
from vmm.config.requests import VmResizeZone
from vmm.config.validation import validate
from vmm.errors import ConfigError, NotFoundError
from vmm.machine.zones import DEFAULT_ZONE, default_zone, lay_out, zones_of

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

    def check_payload(self, config: VmConfig) -> None:
        """Refuse a configuration with less RAM than its kernel needs."""

    def resize_zone(self, zone: str, size: int) -> None:
        """Ask the guest to have so many bytes of a zone beyond those of the boot."""

    def resize_balloon(self, size: int) -> None:
        """Ask the guest for so many bytes in all."""


async def resize(
    config: VmConfig,
    machine: Resizable | None,
    sizes: VmResize | VmResizeZone,
    store: Callable[[VmConfig], None],
) -> None:
    """Give the VM these sizes, and store the configuration after each change.

    ``machine`` is None before boot. Raises: ConfigError (caller), NotFoundError for a zone that
    there is not, PendingError, HostError.
    """
    if isinstance(sizes, VmResizeZone):
        store(_with_zone(config, machine, sizes.id, sizes.desired_ram))
        return
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
    if machine is not None:
        if config.memory.zones:
            raise ConfigError(
                f"desired_ram is {ram}, and the RAM is in zones (memory.zones, --memory-zone), "
                "of which nothing says which is meant; use vm.resize-zone"
            )
        if config.memory.hotplug_method == HotplugMethod.VIRTIO_MEM:
            return _with_mem(config, machine, ram)
    if not memory.zones:
        lay_out([default_zone(memory)], ram_ranges(ram))
    config = config.model_copy(update={"memory": memory})
    if machine is not None:
        validate(config)
        more = ram - machine.ram_size
        if more > 0:
            await machine.grow_ram(more)
        elif more < 0:
            machine.check_payload(config)
    return config


def _with_mem(config: VmConfig, machine: Resizable, ram: int) -> VmConfig:
    """The guest plugs and unplugs what it is asked to beyond the RAM of the boot."""
    memory = config.memory
    more = _beyond_boot("desired_ram", ram, memory.size)
    if more != (memory.hotplugged_size or 0):
        machine.resize_zone(DEFAULT_ZONE, more)
    memory = memory.model_copy(update={"hotplugged_size": more or None})
    return config.model_copy(update={"memory": memory})


def _with_zone(config: VmConfig, machine: Resizable | None, id: str, size: int) -> VmConfig:
    """A zone grows and shrinks by virtio-mem; before boot it is made of another size."""
    zones = config.memory.zones or ()
    zone = next((zone for zone in zones if zone.id == id), None)
    if zone is None:
        raise NotFoundError(
            f'No memory zone with id "{id}"; memory.zones (--memory-zone) has '
            f"{', '.join(zone.id for zone in zones) or 'none, use vm.resize'}"
        )
    if machine is None:
        changed = zone.model_copy(update={"size": size})
    else:
        more = _beyond_boot(f"desired_ram of memory zone {id}", size, zone.size)
        machine.resize_zone(id, more)
        changed = zone.model_copy(update={"hotplugged_size": more or None})
    changed_zones = tuple(changed if each is zone else each for each in zones)
    memory = config.memory.model_copy(update={"zones": changed_zones})
    if machine is None:
        lay_out(zones_of(memory), ram_ranges(memory.total_size))
    return config.model_copy(update={"memory": memory})


def _beyond_boot(name: str, wanted: int, boot: int) -> int:
    """How much is wanted beyond what is there from the boot on. Raises: ConfigError (caller)."""
    if wanted < boot:
        raise ConfigError(
            f"{name} is {wanted}, and the {boot} bytes that were there at boot stay; give as many "
            "or more, or boot with less"
        )
    return wanted - boot


def _with_balloon(config: VmConfig, machine: Resizable | None, size: int) -> VmConfig:
    balloon = config.balloon and config.balloon.model_copy(update={"size": size})
    config = config.model_copy(update={"balloon": balloon})
    if machine is not None:
        validate(config)
        machine.resize_balloon(size)
    return config
