"""The rules of tools/layers.py hold for this checkout, and each rule finds what it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import layers


@pytest.fixture(scope="module")
def imports() -> list[layers.Import]:
    return layers.read_imports()


def imports_of(root: Path, files: dict[str, str]) -> list[layers.Import]:
    """Write a tree of modules and read their imports."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return layers.read_imports(root)


def test_imports_only_go_down(imports: list[layers.Import]) -> None:
    assert layers.imports_that_go_up(imports) == []


def test_sans_io_modules_do_no_io(imports: list[layers.Import]) -> None:
    assert layers.sans_io_that_does_io(imports) == []


def test_devices_import_no_other_device(imports: list[layers.Import]) -> None:
    assert layers.devices_that_know_devices(imports) == []


def test_client_knows_models_and_errors_only(imports: list[layers.Import]) -> None:
    assert layers.clients_that_know_the_server(imports) == []


def test_client_that_knows_the_server_is_found(tmp_path: Path) -> None:
    imports = imports_of(
        tmp_path,
        {"vmm/api/app.py": "", "vmm/client/calls.py": "import vmm.api.app\nimport vmm.errors"},
    )

    (breach,) = layers.clients_that_know_the_server(imports)

    assert breach.startswith("vmm/client/calls.py:1: vmm.client.calls imports vmm.api.app: ")


def test_files_are_short() -> None:
    assert layers.files_too_long() == []


def test_every_module_has_a_layer(imports: list[layers.Import]) -> None:
    assert imports, "no import was found: the rules above would hold of nothing"
    assert all(layers.layer_of(each.importer) is not None for each in imports)


@pytest.mark.parametrize(
    ("module", "layer"),
    [
        ("vmm.config.units", 1),
        ("vmm.config.disk", 2),
        ("vmm.machine.bus", 3),
        ("vmm.console.pty", 4),
        ("vmm.machine.vm", 5),
        ("vmm.machine.owner", 5),
        ("vmm.api.app", 6),
        ("trio", None),
    ],
)
def test_layer_of_module_is_the_longest_match(module: str, layer: int | None) -> None:
    assert layers.layer_of(module) == layer


@pytest.mark.parametrize(
    "statement",
    [
        "import vmm.machine.vm",
        "from vmm.machine import vm",
        "from vmm.machine.vm import Vm",
        "from ..machine import vm",
        "from ..machine.vm import Vm",
        "def late():\n    from vmm.machine.vm import Vm",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vmm.machine.vm import Vm",
    ],
)
def test_import_of_a_higher_layer_is_found(tmp_path: Path, statement: str) -> None:
    imports = imports_of(
        tmp_path,
        {
            "vmm/machine/__init__.py": "",
            "vmm/machine/vm.py": "",
            "vmm/legacy/serial.py": statement,
        },
    )

    (breach,) = layers.imports_that_go_up(imports)

    line = len(statement.splitlines())
    assert breach == (
        f"vmm/legacy/serial.py:{line}: vmm.legacy.serial imports vmm.machine.vm:"
        " layer 4 may not import layer 5"
    )


def test_import_of_a_lower_layer_is_allowed(tmp_path: Path) -> None:
    imports = imports_of(
        tmp_path, {"vmm/errors.py": "", "vmm/legacy/serial.py": "from vmm.errors import GuestError"}
    )

    assert imports
    assert layers.imports_that_go_up(imports) == []


@pytest.mark.parametrize("statement", ["import os.path", "from trio import run", "import socket"])
def test_io_in_a_sans_io_module_is_found(tmp_path: Path, statement: str) -> None:
    imports = imports_of(tmp_path, {"vmm/pci/bar.py": statement})

    (breach,) = layers.sans_io_that_does_io(imports)

    assert breach.startswith("vmm/pci/bar.py:1: vmm.pci.bar imports ")


def test_device_that_imports_another_device_is_found(tmp_path: Path) -> None:
    imports = imports_of(
        tmp_path,
        {
            "vmm/legacy/serial.py": "from vmm.net.tap import Tap\nfrom vmm.legacy.cmos import Cmos",
            "vmm/legacy/cmos.py": "",
            "vmm/net/tap.py": "",
        },
    )

    (breach,) = layers.devices_that_know_devices(imports)

    assert breach.startswith("vmm/legacy/serial.py:1: vmm.legacy.serial imports vmm.net.tap")


def test_file_longer_than_the_limit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "vmm" / "machine" / "bus.py"
    path.parent.mkdir(parents=True)
    path.write_text("\n" * (layers.LONGEST_FILE_LINES + 1))

    assert layers.files_too_long(tmp_path) == [
        "vmm/machine/bus.py: 401 lines, the limit is 400; split it by role"
    ]
