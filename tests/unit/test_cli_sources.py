"""Where the VM of the command line comes from: a snapshot or a payload, and what that tells it."""

from __future__ import annotations

import pytest

from vmm.cli import format_error_chain, parse
from vmm.errors import ConfigError


def test_parse_restore_alone_makes_no_vm_of_its_own() -> None:
    text = "source_url=file:///s,prefault=on,net_fds=[n@[3,4]],resume=true"

    invocation = parse(["--restore", text, "--api-socket", "/a"])

    assert invocation.config is None
    assert invocation.restore is not None
    assert invocation.restore.to_json() == {
        "source_url": "file:///s",
        "prefault": True,
        "memory_restore_mode": "Copy",
        "net_fds": [{"num_fds": 2, "id": "n", "fds": [3, 4]}],
        "resume": True,
    }


def test_parse_payload_goes_before_a_restore() -> None:
    invocation = parse(["--restore", "source_url=file:///s", "--kernel", "/k"])

    assert invocation.restore is None
    assert invocation.config is not None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prefault=on", "source_url is missing"),
        ("source_url=file:///s,oops=1", "Unknown option: oops"),
        ("source_url=file:///s,prefault=on,memory_restore_mode=ondemand", "give one of them"),
        ("source_url=file:///s,net_fds=[n@[3],n@[4]]", "Identifier n is not unique"),
        ("source_url=file:///s,zone_updates=[z@0,z@1]", "Identifier z is not unique"),
    ],
)
def test_parse_restore_that_breaks_a_rule_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match="Error parsing restore") as caught:
        parse(["--restore", text])
    assert words in format_error_chain(caught.value)


def test_parse_items_of_fw_cfg_are_files_and_texts() -> None:
    text = 'cmdline=off,items=[name=opt/a,file=/a:name="opt/b:c",string="x, y"]'

    config = parse(["--kernel", "/k", "--fw-cfg-config", text]).config

    assert config is not None
    assert config.to_json()["payload"] == {
        "kernel": "/k",
        "fw_cfg_config": {
            "e820": True,
            "kernel": True,
            "cmdline": False,
            "initramfs": True,
            "acpi_table": True,
            "items": [
                {"name": "opt/a", "file": "/a"},
                {"name": "opt/b:c", "string": "x, y"},
            ],
        },
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("oops=1", "Unknown option: oops"),
        ("items=[name=a]", "name=<name>,file=<path> or name=<name>,string=<text>"),
        ("items=[file=/a,string=b]", "name=<name>,file=<path>"),
        ("items=[name=a,file=/a:name=a,string=b]", "Identifier a is not unique"),
        (f"items=[name={'a' * 56},string=b]", "the name has 56 bytes and must have from 1 to 55"),
        ("items=[name=,string=b]", "the name has 0 bytes"),
    ],
)
def test_parse_fw_cfg_that_cannot_be_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match="Error parsing config") as caught:
        parse(["--kernel", "/k", "--fw-cfg-config", text])
    assert words in format_error_chain(caught.value)


def test_parse_fw_cfg_boots_nothing_by_itself() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(["--fw-cfg-config", "e820=on"])
    assert "No bootitem provided" in format_error_chain(caught.value)
