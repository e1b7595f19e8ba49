"""What docs/properties.md calls refused: a VM with it is created, and its boot names it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kvm.guests import programs
from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.processes import machine, running, short_folder
from tests.unit.contract import object_with, places, put
from tests.unit.properties_page import ROWS
from vmm.testing.process import VmmProcess

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

place = short_folder

WAYS = dict(reversed(list(places())))
NOT_OF_A_VM = {"VmAddUserDevice"}
REFUSED = [
    (row.object, field)
    for row in ROWS
    if row.state == "refused" and row.object not in NOT_OF_A_VM
    for field in row.properties
]

SHARED = {"size": 64 << 20, "shared": True}
"""What vhost-user needs, so that no rule about memory is broken first."""

BESIDE: dict[tuple[str, str], dict[str, object]] = {
    ("DiskConfig", "vhost_user"): {"vhost_socket": "/s"},
    ("DiskConfig", "vhost_socket"): {"vhost_user": True},
    ("NetConfig", "vhost_user"): {"vhost_socket": "/s"},
    ("NetConfig", "vhost_socket"): {"vhost_user": True},
    ("NetConfig", "vhost_mode"): {"vhost_user": True, "vhost_socket": "/s"},
    ("FsConfig", "num_queues"): {"num_queues": 1},
    ("ConsoleConfig", "socket"): {"mode": "Socket"},
    ("DeviceConfig", "iommu"): {"path": "/sys/d"},
}
"""What a property means nothing without, or breaks another rule without."""

POWERS_OF_TWO = {"queue_size": 64, "num_queues": 1}


def refused_config(kernel: Path, name: str, field: str) -> dict[str, object]:
    """A VM that has the property and breaks no rule besides."""
    given = {
        each: POWERS_OF_TWO.get(each, value) for each, value in object_with(name, field).items()
    }
    if name == "GenericVhostUserConfig":
        given["queue_size"] = [64]
    given |= BESIDE.get((name, field), {})
    if name == "PayloadConfig":
        return machine(kernel, payload=given)
    small = machine(kernel, memory=SHARED)
    config = {**small, **put(WAYS[name], given), "payload": small["payload"]}
    return {**config, "platform": {"num_pci_segments": 3}} if "pci_segment" in given else config


def words(name: str, field: str) -> set[str]:
    """How the refusal may call it: the property, what it goes with, or the section it stands in."""
    found = {field, *BESIDE.get((name, field), ()), *map(str, WAYS[name][:1])}
    return {word.replace("-", "_") for word in found}


async def test_each_refused_property_is_named_when_the_vm_boots(place: Path) -> None:
    kernel = write_kernel(place, programs.HALT)
    async with running(place) as vmm:
        for name, field in REFUSED:
            status, text = await refusal(vmm, refused_config(kernel, name, field))

            assert status in (400, 501), (name, field, text)
            assert any(word in text for word in words(name, field)), (name, field, text)


async def refusal(vmm: VmmProcess, config: dict[str, object]) -> tuple[int, str]:
    """What the creation of a VM, or if that succeeds its boot, is answered."""
    reply = await vmm.api("PUT", "vm.create", config)
    if reply.status == 204:
        reply = await vmm.api("PUT", "vm.boot")
        await vmm.put("vm.delete")
    return reply.status, " | ".join(json.loads(reply.body)) if reply.body else ""
