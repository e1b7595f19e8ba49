"""Whatever a debugger sends, its session answers or goes on; nothing of the VMM fails."""

from __future__ import annotations

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_gdb_debuggee import Bench
from vmm.gdb.packets import encode
from vmm.gdb.session import Ended, Session

NUMBERS = st.sampled_from(["0", "1", "-1", "fff0", "ffffffffffffffff", "1" * 30, "zz", "", "2"])
WORDS = st.sampled_from(
    [
        *("g", "G", "p", "P", "m", "M", "Z0", "Z1", "Z2", "z3", "H", "Hg", "T", "q", "Q", "?", "X"),
        *("vCont;", "vCont;s:", "c", "s", "vKil", "qThreadExtraInfo,"),
        "qXfer:features:read:target.xml:",
    ]
)
PACKETS = st.builds(
    lambda word, numbers, between: word + between.join(numbers),
    WORDS,
    st.lists(NUMBERS, max_size=4),
    st.sampled_from([",", ":", ";", "="]),
)
PIECES = PACKETS.map(lambda packet: encode(packet.encode())) | st.sampled_from(
    [b"+", b"-", b"\x03", b"$", b"#", b"$g#00"]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES | st.binary(max_size=8), max_size=12))
def test_anything_sent_ends_in_order(pieces: list[bytes]) -> None:
    async def talk() -> Ended | None:
        ended: list[Ended] = []
        ours, theirs = trio.testing.memory_stream_pair()
        bench = Bench()

        async def serve() -> None:
            ended.append(await Session(theirs, bench.debuggee).run())

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                for piece in pieces:
                    await ours.send_all(piece)
                await ours.send_eof()
        assert bench.vcpus.let_run is None
        return ended[0]

    assert trio.run(talk) in (Ended.CLOSED, Ended.DETACHED)
