"""Debian packages, unpacked into the cache by a private apt.

The system's own apt is read for its mirror and its proxy and is otherwise left alone: this one has
its own lists, its own empty package status and its own cache, so nothing is ever installed and no
hook of the system runs. Each package is unpacked in a directory named by its version.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tools.images.cache import ImageError, cache_dir, exclusive, make_tree
from tools.images.mirror import machine_sources, source_for, to_deb822

# What a suite name stands for: a release comes with its updates, as on an installed system.
_PARTS = {
    "bookworm": ("bookworm", "bookworm-updates", "bookworm-security"),
    "bookworm-backports": ("bookworm-backports",),
    "trixie": ("trixie", "trixie-updates", "trixie-security"),
    "trixie-backports": ("trixie-backports",),
    "sid": ("sid",),
}

_WHOLE_PARTS = {"trixie-backports": (*_PARTS["trixie"], "trixie-backports")}
"""Where a package of a suite and all that it depends on comes from."""

_INDEX_FRESH_S = 15 * 60

# The system's configuration is read first (its proxy matters), this last. Signatures are checked;
# the age of an index is not, as a mirror may be a frozen copy.
_APT_CONF = """\
Dir::State "{state}";
Dir::State::status "{state}/status";
Dir::Cache "{state}/cache";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "{state}/sources";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Architecture "amd64";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::Check-Valid-Until "false";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
"""


def fetch(package: str, suite: str, *, newest: bool = False) -> Path:
    """Return the directory ``package`` of ``suite`` is unpacked in; ``DEBIAN/control`` is in there.

    What the cache has is returned as it is; ``newest`` looks on the mirror for a later version.

    Raises: ImageError: no such suite or package (caller), or the mirror failed (host).
    """
    if suite not in _PARTS:
        raise ImageError(f"There is no suite {suite!r}; known are {', '.join(_PARTS)}.")
    packages = cache_dir() / "packages"
    latest = packages / suite / package
    # What is there already needs no hold: the cache may be on a file system that is read-only.
    if latest.exists() and not newest:
        return latest.resolve()
    with exclusive("packages"):
        if newest or not latest.exists():
            apt = _Apt(suite, _PARTS[suite])
            version = apt.version_of(package)
            # A colon (the epoch) would break search paths such as QEMU_MODULE_DIR or PATH.
            name = f"{package}_{version.replace(':', '.')}"
            make_tree(packages / name, lambda tree: apt.unpack(package, version, tree))
            _point(latest, packages / name)
        return latest.resolve()


def fetch_whole(package: str, suite: str, *, newest: bool = False) -> Path:
    """Return a directory with ``package`` of ``suite`` and everything it needs, C library included.

    All of it is unpacked over each other, as on an installed system, but no package's own script
    has run. The package's ``DEBIAN/control`` is in there. Raises: as ``fetch``.
    """
    if suite not in _WHOLE_PARTS:
        raise ImageError(f"Nothing whole comes from {suite!r}; known is {', '.join(_WHOLE_PARTS)}.")
    packages = cache_dir() / "packages"
    name = f"{suite}-whole"
    latest = packages / name / package
    if latest.exists() and not newest:
        return latest.resolve()
    with exclusive("packages"):
        if newest or not latest.exists():
            apt = _Apt(name, _WHOLE_PARTS[suite], target=suite)
            version = apt.version_of(package)
            tree = packages / f"{package}-whole_{version.replace(':', '.')}"
            make_tree(tree, lambda tree: apt.unpack_whole(package, version, tree))
            _point(latest, tree)
        return latest.resolve()


def depends(tree: Path) -> list[str]:
    """Return the names a package unpacked in ``tree`` depends on, the first of each alternative."""
    value = _control_field(tree, "Depends")
    return [
        name
        for name in (re.split(r"[\s(:|]", part.strip())[0] for part in value.split(","))
        if name
    ]


def version(tree: Path) -> str:
    """Return the version of the package unpacked in ``tree``."""
    return _control_field(tree, "Version")


def _control_field(tree: Path, field: str) -> str:
    control = (tree / "DEBIAN" / "control").read_text()
    match = re.search(rf"^{field}:(.*(?:\n[ \t].*)*)", control, re.MULTILINE)
    return match[1].strip() if match else ""


def _point(link: Path, target: Path) -> None:
    """Make ``link`` a symbolic link to ``target``, replacing an older one in one step."""
    link.parent.mkdir(parents=True, exist_ok=True)
    draft = link.with_name(f".{link.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(os.path.relpath(target, link.parent))
    draft.replace(link)


class _Apt:
    """A private apt whose only sources are the parts of one suite.

    ``target`` is the part that is preferred where several have a package.
    """

    def __init__(self, suite: str, parts: Sequence[str], target: str = "") -> None:
        self._suite = suite
        self._parts = parts
        self._target = target
        self._state = cache_dir() / "apt" / suite
        self._conf = self._state / "apt.conf"
        self._write_state()
        self._update()

    def version_of(self, package: str) -> str:
        """Return the newest version of ``package`` in this suite."""
        shown = self._run(
            "apt-cache",
            "show",
            "--no-all-versions",
            package,
            why=f"{self._suite} has no package {package}",
        )
        found = re.search(r"^Version: (\S+)$", shown, re.MULTILINE)
        if found is None:
            raise ImageError(f"{self._suite} has no package {package}.")
        return found[1]

    def unpack(self, package: str, version: str, tree: Path) -> None:
        """Download one version of ``package`` and unpack it, control files included."""
        self._run(
            "apt-get",
            "download",
            "-qq",
            f"{package}={version}",
            why=f"{package} {version} was not downloaded",
            where=tree.parent,
        )
        (archive,) = tree.parent.glob(f"{package}_*.deb")
        self._unpack(archive, tree)
        self._unpack_control(archive, tree)
        archive.unlink()

    def unpack_whole(self, package: str, version: str, tree: Path) -> None:
        """Download one version of ``package`` with what it depends on and unpack it all."""
        archives = tree.parent / "archives"
        (archives / "partial").mkdir(parents=True)
        self._run(
            "apt-get",
            "install",
            "--download-only",
            "--yes",
            "-qq",
            "--no-install-recommends",
            "-o",
            f"Dir::Cache::archives={archives}",
            f"{package}={version}",
            why=f"{package} {version} was not downloaded",
        )
        for archive in sorted(archives.glob("*.deb")):
            self._unpack(archive, tree)
            if archive.name.startswith(f"{package}_"):
                self._unpack_control(archive, tree)

    def _unpack(self, archive: Path, tree: Path) -> None:
        self._run("dpkg-deb", "-x", str(archive), str(tree), why=f"{archive.name} did not unpack")

    def _unpack_control(self, archive: Path, tree: Path) -> None:
        control = str(tree / "DEBIAN")
        self._run("dpkg-deb", "-e", str(archive), control, why=f"{archive.name} did not unpack")

    def _update(self) -> None:
        """Fetch the index unless it is fresh: packages fetched together then match each other."""
        stamp = self._state / "updated"
        if stamp.exists() and time.time() - stamp.stat().st_mtime < _INDEX_FRESH_S:
            return
        self._run("apt-get", "update", "-qq", why=f"the index of {self._suite} was not fetched")
        stamp.touch()

    def _write_state(self) -> None:
        for part in ("lists/partial", "cache/archives/partial", "sources"):
            (self._state / part).mkdir(parents=True, exist_ok=True)
        (self._state / "status").touch()
        conf = _APT_CONF.format(state=self._state)
        if self._target:
            conf += f'APT::Default-Release "{self._target}";\n'
        self._conf.write_text(conf)
        machine = machine_sources()
        sources = [source_for(part, machine) for part in self._parts]
        stanzas = [to_deb822(source) for source in sources if source is not None]
        (self._state / "sources" / "debian.sources").write_text("\n".join(stanzas))

    def _run(self, *command: str, why: str, where: Path | None = None) -> str:
        """Run a command, with this apt's configuration, and return what it printed."""
        argv = list(command)
        if argv[0].startswith("apt-"):
            argv[1:1] = ["-c", str(self._conf)]
        done = subprocess.run(argv, cwd=where, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = done.stderr.strip() or f"exit code {done.returncode}"
            raise ImageError(f"{why[0].upper()}{why[1:]}: {said}")
        return done.stdout
