"""Saved states: what is written is read again, and nothing else is believed."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.saved_values import states
from vmm.acpi import saved as acpi
from vmm.errors import ConfigError
from vmm.legacy import saved as legacy
from vmm.machine import saved as machine
from vmm.pci import saved as pci
from vmm.saved import SavedState, Upgrade
from vmm.snapshot.state import BOARD, MachineState, SavedDevice
from vmm.virtio import saved as virtio
from vmm.virtio.device import VirtioDevice
from vmm.virtio.spec import DeviceId

MODELS = [
    model
    for module in (acpi, legacy, machine, pci, virtio)
    for model in vars(module).values()
    if isinstance(model, type) and issubclass(model, SavedState) and model is not SavedState
]

VIRTIO = st.sampled_from([DeviceId.BLOCK, DeviceId.NET, DeviceId.PMEM, DeviceId.RNG]).flatmap(
    lambda kind: st.tuples(
        states(pci.SavedPlace),
        states(pci.SavedConfiguration),
        states(virtio.OWN[kind]),
        states(pci.SavedMsix),
        states(virtio.SavedTransport).map(
            lambda state: state.model_copy(update={"device_id": int(kind)})
        ),
    )
)
PVPANIC = st.tuples(
    states(pci.SavedPlace), states(pci.SavedConfiguration), states(legacy.SavedPvpanic)
)
DEVICES = (VIRTIO | PVPANIC).map(lambda parts: SavedDevice(*parts))
NAMES = st.text('abc_-"\\é', min_size=1, max_size=4)
MACHINES = st.tuples(
    states(machine.SavedClock),
    states(machine.SavedProcessors),
    st.dictionaries(st.integers(0, 1023), states(machine.SavedVcpu), max_size=2),
    states(machine.SavedMemory),
    st.fixed_dictionaries({}, optional={name: states(model) for name, model in BOARD.items()}),
    st.dictionaries(NAMES, DEVICES, max_size=2),
).map(lambda parts: MachineState(*parts))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_state_is_read_as_it_was_written(model: type[SavedState], data: st.DataObject) -> None:
    state = data.draw(states(model))

    assert model.from_json(state.to_json(), "it") == state


@settings(max_examples=15, deadline=None)
@given(state=MACHINES)
def test_machine_is_read_as_it_was_written(state: MachineState) -> None:
    assert MachineState.from_json(state.to_json()) == state


@settings(max_examples=40, deadline=None)
@given(state=MACHINES, at=st.integers(0, 1 << 20), what=st.sampled_from('"{}[]:,0a\\'))
def test_machine_with_one_character_changed_is_read_or_refused(
    state: MachineState, at: int, what: str
) -> None:
    text = state.to_json()
    at %= len(text)
    with suppress(ConfigError):
        MachineState.from_json(text[:at] + what + text[at + 1 :])


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@given(node=ANYTHING)
def test_anything_else_is_refused(node: object) -> None:
    for text in (json.dumps(node), json.dumps({"snapshots": node, "snapshot_data": node})):
        with pytest.raises(ConfigError):
            MachineState.from_json(text)


def every_device() -> set[type[VirtioDevice]]:
    import vmm.virtio.balloon
    import vmm.virtio.block
    import vmm.virtio.console
    import vmm.virtio.iommu
    import vmm.virtio.mem
    import vmm.virtio.net
    import vmm.virtio.pmem
    import vmm.virtio.rng
    import vmm.virtio.rtc
    import vmm.virtio.vsock
    import vmm.virtio.watchdog

    assert vmm.virtio.watchdog
    return {each for each in VirtioDevice.__subclasses__() if each.__module__.startswith("vmm.")}


def test_every_type_of_device_has_a_model() -> None:
    assert {device.DEVICE_ID for device in every_device()} == set(virtio.OWN)


class Second(SavedState):
    """A state whose field had another name once."""

    VERSION: ClassVar[int] = 3
    UPGRADES: ClassVar[dict[int, Upgrade]] = {
        2: lambda fields: {"size": fields["length"]},
    }

    size: int


def test_state_of_an_older_version_is_brought_up_to_date() -> None:
    assert Second.from_json('{"version": 2, "length": 7}', "it") == Second(size=7)


@settings(max_examples=5, deadline=None)
@given(state=states(machine.SavedVcpu))
def test_vcpu_of_before_guests_with_vms_of_their_own_is_none_of_those(state: SavedState) -> None:
    fields = json.loads(state.to_json()) | {"version": 1}
    del fields["nested"]

    read = machine.SavedVcpu.from_json(json.dumps(fields), "it")

    assert read == state.model_copy(update={"nested": b""})


@pytest.mark.parametrize("version", [0, 1, 4, -1])
def test_state_of_another_version_is_refused_by_name(version: int) -> None:
    text = json.dumps({"version": version, "size": 1})

    with pytest.raises(ConfigError, match=f"of the thing has version {version}.*versions 2 to 3"):
        Second.from_json(text, "the thing")


@pytest.mark.parametrize(
    "content", [{}, {"version": "3"}, {"version": True}, [], None, {"version": 3}, {"version": 2}]
)
def test_state_that_is_none_is_refused(content: Any) -> None:  # noqa: ANN401  whatever JSON gives
    with pytest.raises(ConfigError, match="The state of the thing"):
        Second.from_json(json.dumps(content), "the thing")
