"""Check that imports only go down the layers, and that each layer keeps to itself.

Run as ``python -m tools.layers``; ``tests/unit/test_layers.py`` runs the same rules one by one.

The layers, lowest first: 1 errors, units and the C extension; 2 sans-I/O; 3 the machine; 4 devices;
5 ownership; 6 the edges. docs/architecture.md says why.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The longest name that a module begins with decides.
LAYERS: dict[str, int] = {
    "vmm.errors": 1,
    "vmm.page": 1,
    "vmm.saved": 2,
    "vmm.config.units": 1,
    "vmm.virtio.spec": 1,
    "vmm.kvm_cffi": 1,
    "vmm.config": 2,
    "vmm.acpi": 2,
    "vmm.pci": 2,
    "vmm.virtio.queue": 2,
    "vmm.virtio.saved": 2,
    "vmm.legacy.saved": 2,
    "vmm.virtio.chain": 2,
    "vmm.virtio.packed": 2,
    "vmm.virtio.status": 2,
    "vmm.net.mac": 2,
    "vmm.net.offload": 2,
    "vmm.net.rarp": 2,
    "vmm.vsock.packet": 2,
    "vmm.vsock.credit": 2,
    "vmm.vhost_user.messages": 2,
    "vmm.migration.protocol": 2,
    "vmm.gdb.packets": 2,
    "vmm.gdb.paging": 2,
    "vmm.gdb.registers": 2,
    "vmm.client.calls": 2,
    "vmm.client.descriptors": 2,
    "vmm.client.errors": 2,
    "vmm.client.http": 2,
    "vmm.client.methods": 2,
    "vmm.machine": 3,
    "vmm.boot": 3,
    "vmm.events": 3,
    "vmm.listener": 3,
    # The interface a console device is given; the back ends behind it are devices' equals.
    "vmm.console.backend": 3,
    "vmm.legacy": 4,
    "vmm.console": 4,
    "vmm.virtio": 4,
    "vmm.block": 4,
    "vmm.net": 4,
    "vmm.vsock": 4,
    "vmm.vhost_user": 4,
    "vmm.vfio": 4,
    "vmm.machine.vm": 5,
    "vmm.machine.virtual_machine": 5,
    "vmm.machine.owner": 5,
    "vmm.machine.firmware": 5,
    "vmm.machine.chipset": 5,
    "vmm.machine.board_state": 5,
    "vmm.machine.brought_back": 5,
    "vmm.machine.saving": 5,
    "vmm.machine.device_state": 5,
    "vmm.machine.commands": 5,
    "vmm.machine.confinement": 5,
    "vmm.machine.consoles": 5,
    "vmm.machine.devices": 5,
    "vmm.machine.disks": 5,
    "vmm.machine.descriptors": 5,
    "vmm.machine.held_vm": 5,
    "vmm.machine.fw_cfg": 5,
    "vmm.machine.hotplug": 5,
    "vmm.machine.interface": 5,
    "vmm.machine.iommu": 5,
    "vmm.machine.resize": 5,
    "vmm.machine.mailbox": 5,
    "vmm.machine.ivshmems": 5,
    "vmm.machine.mems": 5,
    "vmm.machine.nets": 5,
    "vmm.machine.plug": 5,
    "vmm.machine.vcpus": 5,
    "vmm.machine.pmems": 5,
    "vmm.machine.sections": 5,
    "vmm.machine.small_devices": 5,
    "vmm.machine.vsocks": 5,
    "vmm.gdb": 5,
    "vmm.snapshot": 5,
    "vmm.migration": 5,
    "vmm": 6,
}

SANS_IO_LAYER = 2
DEVICE_LAYER = 4
FORBIDDEN_IN_SANS_IO = frozenset({"trio", "os", "socket", "fcntl", "subprocess", "threading"})
CLIENT = "vmm.client"
KNOWN_TO_CLIENTS = ("vmm.errors", "vmm.config", CLIENT)
LONGEST_FILE_LINES = 400

# Files that may be longer, each with its reason. Keep it empty.
LONGER_FILES: dict[str, str] = {}


@dataclass(frozen=True)
class Import:
    """One import statement's target, as the absolute name of a module."""

    path: str
    line: int
    importer: str
    target: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.importer} imports {self.target}"


def layer_of(module: str) -> int | None:
    """Return the layer of a module of ours, None for anybody else's."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        layer = LAYERS.get(".".join(parts[:length]))
        if layer is not None:
            return layer
    return None


def module_name(path: Path, root: Path) -> str:
    """Return the dotted name of the module in the file ``path`` under ``root``."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read_imports(root: Path = ROOT) -> list[Import]:
    """Return every import in ``vmm``, wherever in the file it stands.

    Those in functions and under ``if TYPE_CHECKING:`` count: who names a type knows of it.
    """
    found: list[Import] = []
    for path in sorted((root / "vmm").rglob("*.py")):
        tree = ast.parse(path.read_text(), str(path))
        importer = module_name(path, root)
        package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
        shown = str(path.relative_to(root))
        for node, target in _targets(tree, package, root):
            found.append(Import(shown, node.lineno, importer, target))
    return found


def _targets(tree: ast.AST, package: str, root: Path) -> Iterator[tuple[ast.stmt, str]]:
    if isinstance(tree, ast.Import):
        yield from ((tree, alias.name) for alias in tree.names)
    elif isinstance(tree, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - tree.level + 1]
        base = ".".join([*(above if tree.level else []), *([tree.module] if tree.module else [])])
        for alias in tree.names:
            # "from package import name": the name is a module if there is a file for it.
            name = f"{base}.{alias.name}"
            yield tree, name if _is_module(name, root) else base
    for child in ast.iter_child_nodes(tree):
        yield from _targets(child, package, root)


def _is_module(name: str, root: Path) -> bool:
    path = root.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def imports_that_go_up(imports: list[Import]) -> list[str]:
    """Return each import of a module in a layer above the importer's."""
    return [
        f"{each}: layer {below} may not import layer {above}"
        for each in imports
        if (below := layer_of(each.importer)) is not None
        and (above := layer_of(each.target)) is not None
        and above > below
        # A package hands on the names of what is inside it.
        and not each.target.startswith(f"{each.importer}.")
    ]


def sans_io_that_does_io(imports: list[Import]) -> list[str]:
    """Return each import of I/O by a module of the sans-I/O layer."""
    return [
        f"{each}: a sans-I/O module does no input or output"
        for each in imports
        if layer_of(each.importer) == SANS_IO_LAYER
        and each.target.split(".")[0] in FORBIDDEN_IN_SANS_IO
    ]


def devices_that_know_devices(imports: list[Import]) -> list[str]:
    """Return each import, by a device, of a device of another family."""
    return [
        f"{each}: a device is given what it may touch and imports no other device"
        for each in imports
        if layer_of(each.importer) == DEVICE_LAYER
        and layer_of(each.target) == DEVICE_LAYER
        and family_of(each.importer) != family_of(each.target)
    ]


def clients_that_know_the_server(imports: list[Import]) -> list[str]:
    """Return each import, by the client, of ours but the models and the errors."""
    return [
        f"{each}: a client knows the server by its models and errors only"
        for each in imports
        if f"{each.importer}.".startswith(f"{CLIENT}.")
        and layer_of(each.target) is not None
        and not any(f"{each.target}.".startswith(f"{name}.") for name in KNOWN_TO_CLIENTS)
    ]


def family_of(module: str) -> str:
    """Return the package directly under ``vmm`` that a module is in."""
    return ".".join(module.split(".")[:2])


def files_too_long(root: Path = ROOT) -> list[str]:
    """Return each Python or C file with more than ``LONGEST_FILE_LINES`` lines."""
    paths = (
        path
        for top in ("vmm", "tools", "tests")
        for pattern in ("*.py", "*.c", "*.h", "*.sh")
        for path in sorted((root / top).rglob(pattern))
    )
    return [
        f"{shown}: {lines} lines, the limit is {LONGEST_FILE_LINES}; split it by role"
        for path in paths
        if (shown := str(path.relative_to(root))) not in LONGER_FILES
        and not path.name.startswith("_kvm.")  # generated
        and (lines := len(path.read_text().splitlines())) > LONGEST_FILE_LINES
    ]


def main() -> int:
    """Print every breach; the exit code says whether there is one."""
    imports = read_imports()
    breaches = [
        *imports_that_go_up(imports),
        *sans_io_that_does_io(imports),
        *devices_that_know_devices(imports),
        *clients_that_know_the_server(imports),
        *files_too_long(),
    ]
    for breach in breaches:
        print(breach)
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
