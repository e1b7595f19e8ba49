"""Choose kernel modules: what a set of them depends on, in load order, decompressed."""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from pathlib import Path

from tools.images.cache import ImageError


@dataclass(frozen=True)
class Module:
    """One module: its name with underscores, and where its (compressed) file is."""

    name: str
    path: Path

    def read(self) -> bytes:
        """Return the module's ELF bytes, decompressed."""
        match self.path.suffix:
            case ".ko":
                return self.path.read_bytes()
            case ".xz":
                return lzma.decompress(self.path.read_bytes())
            case _:
                raise ImageError(f"{self.path} is compressed in an unknown way.")


def load_order(modules_dir: Path, names: tuple[str, ...]) -> list[Module]:
    """Return the named modules and what they need, each after everything it depends on.

    A name that is built into the kernel gives nothing.

    Raises: ImageError: a name is neither a module of this kernel nor built in (caller).
    """
    needs = _read_dependencies(modules_dir)
    built_in = _read_built_in(modules_dir)
    chosen: dict[str, Module] = {}
    for name in names:
        wanted = _name_of(name)
        if wanted in needs:
            path, before = needs[wanted]
            # modules.dep lists the whole closure, the deepest dependency last.
            for part in (*reversed(before), path):
                chosen.setdefault(_name_of(part), Module(_name_of(part), modules_dir / part))
        elif wanted not in built_in:
            raise ImageError(f"The kernel of {modules_dir} has no module {name}.")
    return list(chosen.values())


def _read_dependencies(modules_dir: Path) -> dict[str, tuple[str, list[str]]]:
    needs = {}
    for line in (modules_dir / "modules.dep").read_text().splitlines():
        path, _, before = line.partition(":")
        needs[_name_of(path)] = (path, before.split())
    return needs


def _read_built_in(modules_dir: Path) -> set[str]:
    return {_name_of(line) for line in (modules_dir / "modules.builtin").read_text().splitlines()}


def _name_of(path: str) -> str:
    """Return a module's name: the file name up to ``.ko``, hyphens as underscores."""
    return path.rpartition("/")[2].split(".ko")[0].replace("-", "_")
