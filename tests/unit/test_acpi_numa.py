"""SRAT and SLIT: what is near what, and how far the nodes are."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

from tests.unit.test_acpi_tables import MACHINE, SEGMENT_0, compile_again, table
from vmm.acpi.machine import NumaNode
from vmm.pci.allocator import Span
from vmm.pci.bdf import Bdf

GIB = 1 << 30
NODES = (
    NumaNode(0, (Span(0, 3 * GIB), Span(4 * GIB, GIB)), apic_ids=(0, 2), distances={1: 15}),
    NumaNode(1, (Span(5 * GIB, GIB),), apic_ids=(0x1234,), room=(Span(8 * GIB, 2 * GIB),)),
    NumaNode(3, initiators=(Bdf(2, 0, 5, 0),), distances={1: 30, 0: 40}),
)
NUMA = MACHINE._replace(nodes=NODES)
SRAT_HEADER_BYTES = 48


def srat_entries() -> list[bytes]:
    data = table(NUMA, "SRAT")[SRAT_HEADER_BYTES:]
    entries = []
    while data:
        entries.append(data[: data[1]])
        data = data[data[1] :]
    return entries


def test_machine_without_nodes_has_neither_table() -> None:
    with pytest.raises(KeyError):
        table(MACHINE, "SRAT")
    with pytest.raises(KeyError):
        table(MACHINE, "SLIT")


def test_srat_lists_every_range_of_memory_with_its_node() -> None:
    memory = [struct.unpack("<BBIHQQIIQ", each) for each in srat_entries() if each[0] == 1]

    assert [(each[2], each[4], each[5], each[7]) for each in memory] == [
        (0, 0, 3 * GIB, 1),
        (0, 4 * GIB, GIB, 1),
        (1, 5 * GIB, GIB, 1),
        (1, 8 * GIB, 2 * GIB, 0b11),
    ]


def test_srat_lists_every_processor_by_its_apic_id() -> None:
    processors = [struct.unpack("<BBHIIIII", each) for each in srat_entries() if each[0] == 2]

    assert [(each[3], each[4], each[5]) for each in processors] == [
        (0, 0, 1),
        (0, 2, 1),
        (1, 0x1234, 1),
    ]


def test_srat_names_a_generic_initiator_by_its_pci_address() -> None:
    [initiator] = [each for each in srat_entries() if each[0] == 5]

    assert struct.unpack("<BBBBIHH12xII", initiator) == (5, 32, 0, 1, 3, 2, 5 << 3, 1, 0)


def test_slit_takes_what_is_said_both_ways_and_twenty_where_nothing_is() -> None:
    slit = table(NUMA, "SLIT")

    assert struct.unpack_from("<Q", slit, 36) == (4,)
    rows = [tuple(slit[at : at + 4]) for at in range(44, 60, 4)]
    assert rows == [(10, 15, 20, 40), (15, 10, 20, 30), (20, 20, 10, 20), (40, 30, 20, 10)]


def test_root_bridge_has_the_proximity_of_its_node() -> None:
    far = MACHINE._replace(segments=(SEGMENT_0._replace(node=7),))

    assert b"_PXM\x0a\x07" in table(far, "DSDT")
    assert b"_PXM" not in table(MACHINE, "DSDT")


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl is missing; install acpica-tools")
@pytest.mark.parametrize("signature", ["SRAT", "SLIT"])
def test_numa_table_disassembled_and_compiled_is_the_same(signature: str, tmp_path: Path) -> None:
    content = table(NUMA, signature)

    assert compile_again(tmp_path, signature.lower(), content)[36:].hex() == content[36:].hex()
