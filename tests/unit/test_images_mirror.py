"""The mirror is found in both forms of apt configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.images.cache import ImageError
from tools.images.mirror import (
    Source,
    machine_sources,
    parse_deb822,
    parse_one_line,
    source_for,
    to_deb822,
)

DEB822 = """\
# the archive
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-bookworm-stable.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://vendor.example/apt
Suites: bookworm
Components: tool

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: sid
Components: main
"""


def test_deb822_enabled_stanzas_are_read() -> None:
    sources = list(parse_deb822(DEB822))

    assert [source.uris for source in sources] == [
        "http://mirror.example/debian",
        "http://mirror.example/debian-security",
        "http://vendor.example/apt",
    ]
    assert sources[0].suites == ("bookworm", "bookworm-updates")
    assert sources[0].trust == (
        ("Signed-By", "/usr/share/keyrings/debian-archive-bookworm-stable.gpg"),
    )


def test_deb822_key_written_out_is_kept_whole() -> None:
    key = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n -----END PGP PUBLIC KEY BLOCK-----"
    text = f"Types: deb\nURIs: u\nSuites: sid\nComponents: main\nSigned-By:\n {key}\n"

    (source,) = parse_deb822(text)

    assert source.trust == (("Signed-By", key),)


def test_one_line_sources_are_read_with_their_options() -> None:
    text = """\
# deb http://off.example/debian sid main
deb [arch=amd64 trusted=yes signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib
deb-src http://mirror.example/debian bookworm main
deb http://mirror.example/debian bookworm-backports main # newer
"""

    assert list(parse_one_line(text)) == [
        Source(
            "http://mirror.example/debian",
            ("bookworm",),
            ("main", "contrib"),
            (("Trusted", "yes"), ("Signed-By", "/k.gpg")),
        ),
        Source("http://mirror.example/debian", ("bookworm-backports",), ("main",)),
    ]


def test_machine_sources_reads_both_forms(tmp_path: Path) -> None:
    folder = tmp_path / "sources.list.d"
    folder.mkdir()
    (tmp_path / "sources.list").write_text("deb http://a.example/debian bookworm main\n")
    (folder / "b.list").write_text("deb http://b.example/debian bookworm main\n")
    (folder / "c.sources").write_text(DEB822)
    (folder / "ignored.txt").write_text("deb http://d.example/debian bookworm main\n")

    uris = [source.uris for source in machine_sources(tmp_path)]

    assert uris[:3] == [
        "http://a.example/debian",
        "http://b.example/debian",
        "http://mirror.example/debian",
    ]
    assert "http://d.example/debian" not in uris


def test_source_for_configured_suite_is_as_the_machine_has_it() -> None:
    source = source_for("bookworm-updates", list(parse_deb822(DEB822)))

    assert source is not None
    assert source.uris == "http://mirror.example/debian"
    assert source.suites == ("bookworm-updates",)
    assert source.trust[0][1].endswith("debian-archive-bookworm-stable.gpg")


def test_source_for_other_suite_is_on_the_same_mirror() -> None:
    source = source_for("sid", list(parse_deb822(DEB822)))

    assert source is not None
    assert (source.uris, source.suites) == ("http://mirror.example/debian", ("sid",))


def test_source_for_other_release_security_is_on_the_security_mirror() -> None:
    source = source_for("trixie-security", list(parse_deb822(DEB822)))

    assert source is not None
    assert source.uris == "http://mirror.example/debian-security"


def test_source_for_security_without_security_archive_is_none() -> None:
    sources = list(parse_one_line("deb http://mirror.example/debian bookworm main"))

    assert source_for("bookworm-security", sources) is None


def test_source_for_without_debian_mirror_says_what_to_do() -> None:
    sources = list(parse_one_line("deb http://vendor.example/apt bookworm tool"))

    with pytest.raises(ImageError, match=r"names no Debian mirror; add one to /etc/apt"):
        source_for("sid", sources)


def test_to_deb822_is_read_back_the_same() -> None:
    source = Source("http://m.example/debian", ("sid",), ("main",), (("Signed-By", "/k.gpg"),))

    assert list(parse_deb822(to_deb822(source))) == [source]
