"""What the kernel says of a process's memory."""

from __future__ import annotations

from tools.bench.memory import mapped_kib

ROLLUP = """\
5581e0000000-7ffc0000f000 ---p 00000000 00:00 0                          [rollup]
Rss:               42620 kB
Pss_Dirty:             1 kB
Private_Clean:       800 kB
Private_Dirty:     30000 kB
"""


def test_sums_are_read_by_kind() -> None:
    assert mapped_kib(ROLLUP) == {
        "Rss": 42620,
        "Pss_Dirty": 1,
        "Private_Clean": 800,
        "Private_Dirty": 30000,
    }
