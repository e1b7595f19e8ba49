"""How vCPUs are grouped into threads, cores, dies and packages, and the APIC ids that follow."""

from __future__ import annotations

from typing import NamedTuple


class Topology(NamedTuple):
    """Counts of each level within the next; an APIC id has one bit field a level."""

    threads_per_core: int
    cores_per_die: int
    dies_per_package: int
    packages: int

    @property
    def threads_per_die(self) -> int:
        """How many vCPUs a die has."""
        return self.threads_per_core * self.cores_per_die

    @property
    def threads_per_package(self) -> int:
        """How many vCPUs a package has."""
        return self.threads_per_die * self.dies_per_package

    @property
    def total(self) -> int:
        """How many vCPUs there are."""
        return self.threads_per_package * self.packages

    @property
    def core_shift(self) -> int:
        """How many low bits of an APIC id tell the threads of a core apart."""
        return _width(self.threads_per_core)

    @property
    def die_shift(self) -> int:
        """How many low bits of an APIC id tell the vCPUs of a die apart."""
        return self.core_shift + _width(self.cores_per_die)

    @property
    def package_shift(self) -> int:
        """How many low bits of an APIC id tell the vCPUs of a package apart."""
        return self.die_shift + _width(self.dies_per_package)

    def x2apic_id(self, index: int) -> int:
        """The APIC id of the n-th vCPU: threads count up first, packages last."""
        core, thread = divmod(index, self.threads_per_core)
        die, core = divmod(core, self.cores_per_die)
        package, die = divmod(die, self.dies_per_package)
        return (
            package << self.package_shift | die << self.die_shift | core << self.core_shift | thread
        )


def flat(boot_vcpus: int) -> Topology:
    """What a guest is told where no topology is configured: one package of plain cores."""
    return Topology(1, boot_vcpus, 1, 1)


def x2apic_ids(vcpus: int, topology: Topology | None) -> tuple[int, ...]:
    """The APIC ids of the first vCPUs by index; the index itself where there is no topology."""
    if topology is None:
        return tuple(range(vcpus))
    return tuple(topology.x2apic_id(index) for index in range(vcpus))


def _width(count: int) -> int:
    return (count - 1).bit_length()
