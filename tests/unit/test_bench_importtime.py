"""Whose time an import takes, read from the interpreter's own clock."""

from __future__ import annotations

from tools.bench.importtime import Module, Share, owners, parse, shares, standard_packages

PRINTED = """\
import time: self [us] | cumulative | imported package
import time:       100 |        100 |   _io
import time:       200 |        300 | encodings
import time:      1000 |       1000 |     _ssl
import time:      2000 |       3000 |   ssl
import time:      4000 |       7000 | trio
something else that the program says
import time:       500 |        500 | ssl.more
"""


def test_parse_reads_own_time_and_depth() -> None:
    modules = parse(PRINTED)

    assert modules[2:5] == [
        Module("_ssl", 1000, 2),
        Module("ssl", 2000, 1),
        Module("trio", 4000, 0),
    ]


def test_parse_skips_what_is_no_import() -> None:
    assert len(parse(PRINTED)) == 6


def test_owner_of_a_standard_module_is_who_wanted_it_first() -> None:
    assert owners(parse(PRINTED)) == ["python", "python", "trio", "trio", "trio", "python"]


def test_shares_add_up_by_package_dearest_first() -> None:
    assert shares(parse(PRINTED)) == [
        Share("trio", 3, own_ms=4.0, standard_ms=3.0),
        Share("python", 3, own_ms=0.0, standard_ms=0.8),
    ]


def test_standard_packages_name_who_wanted_them() -> None:
    assert standard_packages(parse(PRINTED))[:2] == [("ssl", "trio", 2.0), ("_ssl", "trio", 1.0)]
