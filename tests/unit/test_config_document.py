"""How JSON becomes a configuration: what is refused, what is ignored, what comes back."""

from __future__ import annotations

import json
import logging

import pytest

from vmm.config.console import ConsoleMode
from vmm.config.document import parse_document
from vmm.config.info import DeviceNode, VmInfo, VmState
from vmm.config.model import ConfigModel
from vmm.config.net import NetConfig
from vmm.config.platform import PlatformConfig
from vmm.config.requests import VmResize
from vmm.config.vm import VmConfig
from vmm.errors import ConfigError


def read(given: object, model: type[ConfigModel] = VmConfig) -> ConfigModel:
    return parse_document(model, json.dumps(given).encode())


def problems(body: bytes | str, model: type[ConfigModel] = VmConfig) -> tuple[str, ...]:
    """The sentences that refuse a document."""
    with pytest.raises(ConfigError) as caught:
        parse_document(model, body)
    return caught.value.problems


def refusal(given: object, model: type[ConfigModel] = VmConfig) -> str:
    """The one sentence that refuses a document."""
    (sentence,) = problems(json.dumps(given), model)
    return sentence


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nul",
        b"{'a':1}",
        b'{"cpus":}',
        b'{"a":1} x',
        b"\xff\xfe{}",
        b'{"memory":{"size":NaN}}',
        b'{"memory":{"size":Infinity}}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"memory":{"size":' + b"9" * 5000 + b"}}",
    ],
    ids=lambda body: body[:24].decode("latin-1"),
)
def test_parse_malformed_json_is_a_config_error(body: bytes) -> None:
    assert problems(body)


def test_parse_field_given_twice_is_refused_by_name() -> None:
    assert "duplicate field `iommu`" in problems(b'{"iommu":true,"iommu":true}')[0]


@pytest.mark.parametrize("body", ["[]", "1", '"x"', "null", "true"])
def test_parse_other_than_an_object_is_refused(body: str) -> None:
    assert problems(body)[0].startswith("the body is ")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"memory": {"size": 1.0}}, "memory.size is 1.0; give a whole number"),
        ({"memory": {"size": "1"}}, "memory.size is '1'; give a whole number"),
        ({"memory": {"size": True}}, "memory.size is true; give a whole number"),
        ({"memory": {"size": None}}, "memory.size is null; give a whole number"),
        ({"memory": {"size": -1}}, "memory.size is -1; give at least 0"),
        ({"memory": None}, "memory is null; give an object"),
        ({"iommu": None}, "iommu is null; give true or false"),
        ({"iommu": 1}, "iommu is 1; give true or false"),
        ({"iommu": "on"}, "iommu is 'on'; give true or false"),
        ({"disks": {}}, "disks is an object; give a list"),
        ({"disks": "x"}, "disks is 'x'; give a list"),
        ({"disks": [1]}, "disks[0] is 1; give an object"),
        ({"disks": [{"readonly": None}]}, "disks[0].readonly is null; give true or false"),
        ({"disks": [{"queue_size": 65536}]}, "disks[0].queue_size is 65536; give at most 65535"),
        ({"payload": {"kernel": 1}}, "payload.kernel is 1; give a text"),
        ({"payload": {"kernel": ["/k"]}}, "payload.kernel is a list; give a text"),
        (
            {"memory": {"size": 1, "hotplug_method": "acpi"}},
            "memory.hotplug_method is 'acpi'; give 'Acpi' or 'VirtioMem'",
        ),
        ({"serial": {}}, "missing field `mode`: serial.mode is required; give it"),
        (
            {"vsock": {"cid": 2, "socket": "/s"}},
            "vsock.cid is 2; 2 is a special VSOCK CID; give one from 3 to 4294967294",
        ),
        (
            {"payload": {"kernel": "/a\0b"}},
            "payload.kernel is '/a\\x00b'; it holds a NUL character; remove it",
        ),
        (
            {"payload": {"cmdline": "\ud800"}},
            "payload.cmdline is '\\ud800'; it is not valid UTF-8; use a name that is",
        ),
    ],
)
def test_parse_wrong_value_names_place_value_and_fix(given: object, sentence: str) -> None:
    assert refusal(given) == sentence


def test_parse_long_wrong_value_is_shortened_in_the_error() -> None:
    assert len(refusal({"memory": {"size": "x" * 10_000}})) < 120


def test_parse_several_wrong_values_are_all_named() -> None:
    body = json.dumps({"iommu": 1, "cpus": {"boot_vcpus": 0}, "memory": {"size": "x"}})
    assert len(problems(body)) == 4


def test_parse_null_for_optional_fields_means_absent() -> None:
    config = read({"disks": None, "payload": None, "vsock": None})
    assert config == VmConfig()
    assert "disks" not in config.to_json()


def test_parse_empty_list_is_kept() -> None:
    assert read({"disks": []}).to_json()["disks"] == []


def test_parse_unknown_fields_are_ignored_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "vmm.config"):
        config = read({"colour": 1, "disks": [{"path": "a"}, {"path": "b", "speed": {}}]})
    assert config == VmConfig.model_validate({"disks": [{"path": "a"}, {"path": "b"}]})
    (record,) = caplog.records
    assert record.getMessage() == "Unknown fields are ignored: colour, disks[1].speed"


def test_parse_unknown_field_cannot_forge_or_flood_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "vmm.config"):
        read({"a\nvmm: forged\x1b[31m": 1, **{f"x{index}": 1 for index in range(1000)}})
    (record,) = caplog.records
    assert record.getMessage().isprintable()
    assert record.getMessage().endswith("and 981 more")


def test_parse_unknown_field_of_a_rate_limiter_is_refused() -> None:
    given: object = {"disks": [{"rate_limiter_config": {"bandwith": {}}}]}
    place = "disks[0].rate_limiter_config.bandwith"
    assert refusal(given) == f"{place} is an object; this object has no such field; remove it"


def test_parse_descriptors_are_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "vmm.config"):
        config = read(
            {"net": [{"fds": [9]}], "devices": [{"fd": 9}], "platform": {"iommufd_fd": 9}}
        )
    assert isinstance(config, VmConfig)
    assert config.net is not None
    assert config.net[0].fds is None
    assert "net[0].fds, devices[0].fd, platform.iommufd_fd" in caplog.text


GENERIC = {"socket": "/s", "pci_segment": 0}


@pytest.mark.parametrize("section", ["generic-vhost-user", "generic_vhost_user"])
@pytest.mark.parametrize("sizes", ["queue_size", "queue_sizes"])
@pytest.mark.parametrize("kind", ["virtio_id", "device_type"])
def test_parse_generic_vhost_user_under_either_name_shows_both(
    section: str, sizes: str, kind: str
) -> None:
    shown = read({section: [{**GENERIC, sizes: [64, 64], kind: 26, "tag": "t"}]}).to_json()
    both = {"queue_size": [64, 64], "queue_sizes": [64, 64], "virtio_id": 26, "device_type": 26}
    assert shown["generic-vhost-user"] == [{**GENERIC, **both, "tag": "t"}]
    assert shown["generic_vhost_user"] == shown["generic-vhost-user"]


def test_parse_generic_vhost_user_names_that_disagree_are_refused() -> None:
    device = {**GENERIC, "queue_sizes": [64], "device_type": 26}
    message = refusal({"generic-vhost-user": [{**device, "virtio_id": 27}]})
    assert message.startswith("generic_vhost_user[0]: duplicate field `device_type`")
    message = refusal({"generic-vhost-user": [device], "generic_vhost_user": []})
    assert message.startswith("duplicate field `generic_vhost_user`")


@pytest.mark.parametrize(
    ("old", "new"), [("serial_number", "system_serial_number"), ("uuid", "system_uuid")]
)
def test_parse_platform_alias_is_the_new_name_and_not_both(old: str, new: str) -> None:
    platform = parse_document(PlatformConfig, json.dumps({old: "x"}))
    assert getattr(platform, new) == "x"
    assert refusal({old: "x", new: "x"}, PlatformConfig).startswith(f"duplicate field `{new}`")


def test_to_json_shows_null_for_a_bucket_that_is_not_set() -> None:
    bucket = {"size": 1, "refill_time": 2}
    given = {"rate_limit_groups": [{"id": "g", "rate_limiter_config": {"ops": bucket}}]}
    assert read(given).to_json()["rate_limit_groups"] == [
        {"id": "g", "rate_limiter_config": {"bandwidth": None, "ops": bucket}}
    ]


@pytest.mark.parametrize(
    ("given", "shown"),
    [({}, {}), ({"iommu": True}, {"iommu": True}), ({"iommu": False}, {"iommu": False})],
)
def test_to_json_shows_iommu_when_it_is_on_or_given(
    given: dict[str, bool], shown: dict[str, bool]
) -> None:
    assert read({"rng": {"src": "/r", **given}}).to_json()["rng"] == {
        "src": "/r",
        "pci_segment": 0,
        **shown,
    }


def test_to_json_shows_devices_with_their_excluded_bars() -> None:
    devices = read({"devices": [{"path": "/d"}]}).to_json()["devices"]
    assert devices == [{"path": "/d", "pci_segment": 0, "x_exclude_mmap_bars": []}]


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("mac", "2E:89:a8:e4:92:AF", "2e:89:a8:e4:92:af"),
        ("ip", "192.168.1.1", "192.168.1.1"),
        ("ip", "FE80::1", "fe80::1"),
        ("mask", "255.255.0.0", "255.255.0.0"),
    ],
)
def test_parse_addresses_are_shown_in_their_usual_form(name: str, value: str, shown: str) -> None:
    assert read({name: value}, NetConfig).to_json()[name] == shown


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mac", "2e:89:a8:e4:92"),
        ("mac", "2e:89:a8:e4:92:zz"),
        ("mac", "2e89a8e492af"),
        ("mac", "2e:89:a8:e4:92:a٣"),
        ("ip", "192.168.1"),
        ("ip", "192.168.1.256"),
        ("ip", "fe80::1%eth0"),
        ("mask", "24"),
    ],
)
def test_parse_bad_address_is_refused(name: str, value: str) -> None:
    assert refusal({name: value}, NetConfig).startswith(f"{name} is {value!r}; give a")


def test_parse_requests_have_optional_fields() -> None:
    assert read({"desired_vcpus": None, "desired_ram": 5}, VmResize) == VmResize(desired_ram=5)


def test_info_shows_state_memory_and_tree() -> None:
    info = VmInfo(
        config=VmConfig(),
        state=VmState.PAUSED,
        memory_actual_size=7,
        device_tree={"__serial": DeviceNode(id="__serial", resources=({"LegacyIrq": 4},))},
    )
    shown = info.to_json()
    assert shown["state"] == "Paused"
    assert shown["memory_actual_size"] == 7
    assert shown["device_tree"] == {
        "__serial": {"id": "__serial", "resources": [{"LegacyIrq": 4}], "children": []}
    }


def test_model_copy_with_a_pty_path_is_shown() -> None:
    config = VmConfig()
    serial = config.serial.model_copy(update={"mode": ConsoleMode.PTY, "file": "/dev/pts/3"})
    shown = config.model_copy(update={"serial": serial}).to_json()
    assert shown["serial"] == {"mode": "Pty", "file": "/dev/pts/3"}
