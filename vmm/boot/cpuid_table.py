"""A CPUID table that is changed leaf by leaf and keeps KVM's order."""

from __future__ import annotations

from collections.abc import Iterable

from vmm.kvm_cffi.structs import CpuidEntry

SIGNIFICANT_INDEX = 1 << 0
"""KVM_CPUID_FLAG_SIGNIFCANT_INDEX: the entry answers for its own subleaf alone."""


def bits(*positions: int) -> int:
    """A word with these bits set."""
    return sum(1 << position for position in positions)


class CpuidTable:
    """CPUID entries by leaf and subleaf."""

    def __init__(self, entries: Iterable[CpuidEntry]) -> None:
        self._entries = {(entry.function, entry.index): entry for entry in entries}

    def has(self, function: int, index: int = 0) -> bool:
        """Whether there is such an entry."""
        return (function, index) in self._entries

    def get(self, function: int, index: int = 0) -> CpuidEntry:
        """The entry; one of zeros, as the guest would read it, where there is none."""
        return self._entries.get((function, index)) or CpuidEntry(function, index)

    def put(self, entry: CpuidEntry) -> None:
        """Add an entry or replace the one of the same leaf and subleaf."""
        self._entries[entry.function, entry.index] = entry

    def subleaves(self, function: int) -> list[CpuidEntry]:
        """All entries of one leaf."""
        return [entry for entry in self._entries.values() if entry.function == function]

    def drop(self, functions: range) -> None:
        """Take whole leaves out."""
        self._entries = {
            key: entry for key, entry in self._entries.items() if key[0] not in functions
        }

    def entries(self) -> list[CpuidEntry]:
        """What KVM_SET_CPUID2 takes."""
        return list(self._entries.values())
