"""The frames between the two sides of the nested host."""

from __future__ import annotations

import pytest

from tools.nested_host.inside.frames import (
    HEADER,
    MAX_PAYLOAD_BYTES,
    Frame,
    FrameDecoder,
    Kind,
    ProtocolError,
    encode,
    encode_json,
)

FRAMES = [
    Frame(1, Kind.STDOUT, b"hello"),
    Frame(2, Kind.STDIN),
    Frame(0xFFFFFFFF, Kind.STDERR, bytes(range(256))),
]


@pytest.mark.parametrize("step", [1, 2, 9, 10, 1000])
def test_decoder_fed_in_pieces_gives_the_frames_that_were_encoded(step: int) -> None:
    stream = b"".join(encode(frame) for frame in FRAMES)
    decoder = FrameDecoder()

    decoded = [
        frame
        for start in range(0, len(stream), step)
        for frame in decoder.feed(stream[start : start + step])
    ]

    assert decoded == FRAMES


def test_json_frame_round_trips() -> None:
    value = {"argv": ["é", "b"], "window": None}

    (frame,) = FrameDecoder().feed(encode_json(7, Kind.RUN, value))

    assert (frame.channel, frame.kind, frame.json()) == (7, Kind.RUN, value)


def test_decoder_refuses_a_payload_over_the_limit() -> None:
    with pytest.raises(ProtocolError, match="over"):
        FrameDecoder().feed(HEADER.pack(1, Kind.STDOUT, MAX_PAYLOAD_BYTES + 1))


def test_decoder_refuses_an_unknown_kind() -> None:
    with pytest.raises(ProtocolError, match="99"):
        FrameDecoder().feed(HEADER.pack(1, 99, 0))
