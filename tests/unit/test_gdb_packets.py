"""The framing of gdb's protocol: whole, cut, damaged and escaped packets."""

from __future__ import annotations

import pytest

from vmm.gdb.packets import MOST_BYTES, Damaged, Decoder, Signal, encode, escape, unescape


def test_packet_is_framed_with_its_sum() -> None:
    assert encode(b"OK") == b"$OK#9a"
    assert encode(b"") == b"$#00"


def test_packets_and_what_is_between_come_in_order_however_they_are_cut() -> None:
    stream = b"+$g#67\x03-$m1,2#fc+"
    wanted = [Signal.ACK, b"g", Signal.INTERRUPT, Signal.NAK, b"m1,2", Signal.ACK]
    decoder = Decoder()

    assert [each for byte in stream for each in decoder.feed(bytes((byte,)))] == wanted
    assert list(Decoder().feed(stream)) == wanted


def test_damaged_packet_is_told_and_the_next_one_is_read() -> None:
    assert list(Decoder().feed(b"$g#68$g#67")) == [Damaged.SUM, b"g"]


def test_bytes_of_no_meaning_are_dropped_and_so_is_an_endless_packet() -> None:
    decoder = Decoder()

    assert list(decoder.feed(b"hello\r\n")) == []
    assert list(decoder.feed(b"$" + b"x" * (MOST_BYTES + 10))) == [Damaged.LENGTH]
    assert list(decoder.feed(b"$g#67")) == [b"g"]


@pytest.mark.parametrize("body", [b"", b"}", b"#$*}", bytes(range(256)), b"a}"])
def test_escaped_bytes_are_read_back(body: bytes) -> None:
    assert unescape(escape(body)) == body
    assert list(Decoder().feed(encode(body))) == [body]


def test_escape_that_nothing_follows_is_left_out() -> None:
    assert unescape(b"ab}") == b"ab"
