"""Find the Debian mirror that this machine's own apt configuration uses.

Both forms of apt sources are read: deb822 ``.sources`` files and one-line ``.list`` files. Nothing
here runs apt or changes a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.images.cache import ImageError

_DEBIAN_SUITES = frozenset(
    {"bookworm", "trixie", "forky", "sid", "stable", "testing", "unstable", "oldstable"}
)
_ONE_LINE = re.compile(
    r"^deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.*)$"
)
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


@dataclass(frozen=True)
class Source:
    """One archive of an apt configuration: where it is, what it holds, how it is trusted."""

    uris: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    trust: tuple[tuple[str, str], ...] = ()

    @property
    def is_debian(self) -> bool:
        """Whether it is the Debian archive itself rather than somebody's packages for Debian."""
        bases = {suite.removesuffix("-security").split("-")[0] for suite in self.suites}
        return "main" in self.components and bool(bases & _DEBIAN_SUITES)


def machine_sources(etc: Path = Path("/etc/apt")) -> list[Source]:
    """Read every enabled binary source under ``etc``, in the order apt reads them."""
    sources: list[Source] = []
    one_line = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*.list"))]
    for path in one_line:
        if path.is_file():
            sources.extend(parse_one_line(path.read_text()))
    for path in sorted((etc / "sources.list.d").glob("*.sources")):
        sources.extend(parse_deb822(path.read_text()))
    return sources


def parse_one_line(text: str) -> Iterator[Source]:
    """Parse the one-line form, ``deb [option=value] uri suite component…``."""
    for line in text.splitlines():
        match = _ONE_LINE.match(line.split("#")[0].strip())
        if match is None:
            continue
        options = dict(
            option.split("=", 1) for option in (match["options"] or "").split() if "=" in option
        )
        names = {"signed-by": "Signed-By", "trusted": "Trusted"}
        trust = tuple((names[key], value) for key, value in options.items() if key in names)
        yield Source(match["uri"], (match["suite"],), tuple(match["components"].split()), trust)


def parse_deb822(text: str) -> Iterator[Source]:
    """Parse the deb822 form, stanzas of ``Field: value`` parted by empty lines."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        # A line that begins with a blank continues the field above it (a key may be written out).
        fields = {
            name.strip().lower(): value.strip()
            for name, value in re.findall(
                r"^([^\s:]+):((?:.*)(?:\n[ \t].*)*)", stanza, re.MULTILINE
            )
        }
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes") == "no":
            continue
        names = {"signed-by": "Signed-By", "trusted": "Trusted"}
        yield Source(
            uris=fields.get("uris", ""),
            suites=tuple(fields.get("suites", "").split()),
            components=tuple(fields.get("components", "").split()),
            trust=tuple((names[key], fields[key]) for key in names if key in fields),
        )


def source_for(suite: str, sources: list[Source]) -> Source | None:
    """Return where to get ``suite``: as the machine itself does, or from the same mirror.

    None for a ``-security`` suite on a machine that has no security archive.

    Raises: ImageError, the machine's: its apt configuration names no Debian mirror.
    """
    debian = [source for source in sources if source.is_debian]
    for source in debian:
        if suite in source.suites:
            return Source(source.uris, (suite,), ("main",), source.trust)
    is_security = suite.endswith("-security")
    alike = [s for s in debian if s.suites[0].endswith("-security") == is_security]
    if is_security and not alike:
        return None
    if not alike:
        raise ImageError(
            "The apt configuration of this machine names no Debian mirror;"
            " add one to /etc/apt/sources.list, for instance 'deb MIRROR bookworm main'."
        )
    # The machine may trust one release's key alone; the archive's keyring has those of all.
    trust = (("Signed-By", str(_KEYRING)),) if _KEYRING.exists() else alike[0].trust
    if ("Trusted", "yes") in alike[0].trust:
        trust = (*trust, ("Trusted", "yes"))
    return Source(alike[0].uris, (suite,), ("main",), trust)


def to_deb822(source: Source) -> str:
    """Write one source as a deb822 stanza that fetches the package index alone."""
    fields = {
        "Types": "deb",
        "URIs": source.uris,
        "Suites": " ".join(source.suites),
        "Components": " ".join(source.components),
        "Architectures": "amd64",
        "Targets": "Packages",
        **dict(source.trust),
    }
    return "".join(f"{name}: {value}\n" for name, value in fields.items())
