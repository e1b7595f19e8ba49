"""The socket device: calls from both sides, streams both ways, credit, and short buffers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from tests.unit.vsock_guest import CHUNK, CID, OFFERED, VsockGuest, read_all, read_line, vsock_guest
from vmm.errors import HostError
from vmm.virtio.spec import Status
from vmm.vsock import switch
from vmm.vsock.credit import ROOM_BYTES
from vmm.vsock.packet import HEADER_BYTES, Op

PORT, GUEST_PORT = 5000, 1024
MANY = bytes(range(256)) * 1024


@pytest.fixture(params=["split", "packed"])
async def guest(request: pytest.FixtureRequest) -> AsyncIterator[VsockGuest]:
    with tempfile.TemporaryDirectory(prefix="vsock-") as folder:
        async with vsock_guest(Path(folder)) as guest:
            guest.has_packed = request.param == "packed"
            await guest.start()
            yield guest


async def test_vsock_is_what_the_specification_says(guest: VsockGuest) -> None:
    assert guest.bench.transport.configuration.read(2, 2) == 0x1040 + 19
    assert await guest.bench.driver.offered() == OFFERED
    assert guest.bench.device.queue_sizes == (256,) * 3
    assert guest.bench.device.read_config(0, 4096) == CID.to_bytes(8, "little")


async def test_host_calls_the_guest_and_both_talk(guest: VsockGuest) -> None:
    stream, port = await guest.called_by_host(GUEST_PORT)
    assert port >= 1 << 30

    await stream.send_all(b"to the guest")
    header, data = await guest.receive()
    assert (header.op, header.src_port, header.dst_port) == (Op.RW, port, GUEST_PORT)
    assert data == b"to the guest"
    guest.send(Op.RW, port, GUEST_PORT, b"to the host, in two pieces")
    assert await read_all(stream, 26) == b"to the host, in two pieces"
    assert guest.bench.device.counters == {
        "connections": 1,
        "rx_packets": 2,
        "rx_bytes": 12,
        "tx_packets": 2,
        "tx_bytes": 26,
    }


async def test_guest_calls_the_host_and_both_talk(guest: VsockGuest) -> None:
    stream = await guest.call_host(PORT, GUEST_PORT)

    await stream.send_all(MANY[: 64 << 10])
    assert await guest.hears_data(64 << 10) == MANY[: 64 << 10]
    guest.send(Op.RW, PORT, GUEST_PORT, MANY[: 64 << 10])
    assert await read_all(stream, 64 << 10) == MANY[: 64 << 10]


async def test_guest_that_calls_where_nobody_listens_is_refused(guest: VsockGuest) -> None:
    guest.send(Op.REQUEST, PORT, GUEST_PORT)

    await guest.hears(Op.RST, src_port=PORT, dst_port=GUEST_PORT)


async def test_guest_that_refuses_has_the_client_hung_up_on(guest: VsockGuest) -> None:
    async with await trio.open_unix_socket(guest.path) as stream:
        await stream.send_all(b"CONNECT 7\n")
        request = await guest.hears(Op.REQUEST, dst_port=7)
        guest.send(Op.RST, request.src_port, 7)

        assert await read_line(stream) == b""
    await guest.hears_nothing()


@pytest.mark.parametrize("line", [b"connect 7\n", b"Connect  7 \r\n", b"CONNECT 0000000007\n"])
async def test_line_of_a_client_may_be_written_in_several_ways(
    guest: VsockGuest, line: bytes
) -> None:
    async with await trio.open_unix_socket(guest.path) as stream:
        for byte in line:
            await stream.send_all(bytes((byte,)))
            await trio.testing.wait_all_tasks_blocked()

        await guest.hears(Op.REQUEST, dst_port=7)


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"CONNECT\n",
        b"CONNECT x\n",
        b"CONNECT -1\n",
        b"CONNECT 4294967296\n",
        b"CONNECT 7 8\n",
        b"DISCONNECT 7\n",
        b"CONNECT 7" + b" " * 23,
        b"x" * 100,
    ],
)
async def test_client_that_says_anything_else_is_hung_up_on(guest: VsockGuest, line: bytes) -> None:
    async with await trio.open_unix_socket(guest.path) as stream:
        await stream.send_all(line)

        with suppress(trio.BrokenResourceError):  # Bytes were left unread.
            assert await read_line(stream) == b""
    await guest.hears_nothing()


async def test_client_that_ends_in_the_middle_of_its_line_is_forgotten(guest: VsockGuest) -> None:
    async with await trio.open_unix_socket(guest.path) as stream:
        await stream.send_all(b"CONNECT 7")
        await stream.send_eof()

        with suppress(trio.BrokenResourceError):  # Bytes were left unread.
            assert await read_line(stream) == b""
    await guest.hears_nothing()


async def test_bytes_right_behind_the_line_belong_to_the_stream(guest: VsockGuest) -> None:
    async with await trio.open_unix_socket(guest.path) as stream:
        await stream.send_all(b"CONNECT 7\nhello")
        request = await guest.hears(Op.REQUEST, dst_port=7)
        await guest.hears_nothing()
        guest.send(Op.RESPONSE, request.src_port, 7)

        assert await guest.hears_data(5) == b"hello"


async def test_client_waits_until_the_guest_has_a_driver() -> None:
    with tempfile.TemporaryDirectory(prefix="vsock-") as folder:
        async with vsock_guest(Path(folder)) as guest:
            stream = await guest.silent_client()
            await stream.send_all(b"CONNECT 7\n")
            await trio.testing.wait_all_tasks_blocked()
            await guest.start()

            await guest.hears(Op.REQUEST, dst_port=7)


async def test_guest_gets_no_more_than_it_has_room_for(guest: VsockGuest) -> None:
    stream = await guest.call_host(PORT, GUEST_PORT, room=5000)
    await stream.send_all(MANY[:12000])

    assert await guest.hears_data(5000) == MANY[:5000]
    await guest.hears_nothing()
    guest.send(Op.CREDIT_UPDATE, PORT, GUEST_PORT, room=5000, taken=3000)
    assert await guest.hears_data(3000) == MANY[5000:8000]
    await guest.hears_nothing()
    guest.send(Op.CREDIT_UPDATE, PORT, GUEST_PORT, room=6000, taken=8000)
    assert await guest.hears_data(4000) == MANY[8000:12000]


async def test_what_the_host_does_not_read_is_kept_and_the_guest_told_when_it_is_read(
    guest: VsockGuest,
) -> None:
    stream, port = await guest.called_by_host(GUEST_PORT)
    sent = await guest.send_until_kept(port, GUEST_PORT, ROOM_BYTES)

    assert await read_all(stream, sent) == CHUNK * (sent // len(CHUNK))
    header = await guest.hears(Op.CREDIT_UPDATE)
    while header.fwd_cnt < sent - ROOM_BYTES // 2:
        header = await guest.hears(Op.CREDIT_UPDATE)
    await guest.hears_nothing()


async def test_guest_that_sends_more_than_its_credit_is_reset(guest: VsockGuest) -> None:
    _, port = await guest.called_by_host(GUEST_PORT)
    await guest.send_until_kept(port, GUEST_PORT, ROOM_BYTES)
    guest.send(Op.RW, port, GUEST_PORT, b"x")

    await guest.hears(Op.RST, src_port=port)
    assert not guest.bench.driver.status & Status.NEEDS_RESET


async def test_connections_take_turns(guest: VsockGuest) -> None:
    first, first_port = await guest.called_by_host(1)
    second, second_port = await guest.called_by_host(2)
    await guest.bench.transport.sleep()
    await first.send_all(MANY[: 16 << 10])
    await second.send_all(MANY[: 16 << 10])

    guest.bench.transport.wake()

    ports = [(await guest.receive())[0].src_port for _ in range(8)]
    assert ports in ([first_port, second_port] * 4, [second_port, first_port] * 4)


async def test_guest_without_buffers_hears_all_when_it_has_some(guest: VsockGuest) -> None:
    await guest.start(buffers=0)
    for port in (PORT, PORT + 1, PORT + 2):
        guest.send(Op.REQUEST, port, GUEST_PORT)
    await trio.testing.wait_all_tasks_blocked()

    guest.post(3)
    for port in (PORT, PORT + 1, PORT + 2):
        await guest.hears(Op.RST, src_port=port)


async def test_refusals_that_nobody_takes_are_bounded(
    guest: VsockGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switch, "MOST_REFUSALS", 3)
    await guest.start(buffers=0)
    for port in range(10):
        guest.send(Op.REQUEST, port, GUEST_PORT)
        await trio.testing.wait_all_tasks_blocked()
    guest.post(16)

    for port in range(3):
        await guest.hears(Op.RST, src_port=port)
    await guest.hears_nothing()


async def test_buffer_may_be_in_pieces(guest: VsockGuest) -> None:
    await guest.start(buffers=0)
    guest.post(4, HEADER_BYTES, 7, 9)
    stream = await guest.call_host(PORT, GUEST_PORT)
    await stream.send_all(b"0123456789abcdefghij")

    assert (await guest.receive())[1] == b"0123456789abcdef"
    assert (await guest.receive())[1] == b"ghij"


@pytest.mark.parametrize("pieces", [(HEADER_BYTES,), (HEADER_BYTES - 1,), (10, 10)])
async def test_buffer_without_room_for_a_byte_breaks_the_device(
    guest: VsockGuest, pieces: tuple[int, ...]
) -> None:
    await guest.start(buffers=0)
    guest.post(1, *pieces)
    guest.send(Op.REQUEST, PORT, GUEST_PORT)

    await guest.bench.interrupt(0)

    assert guest.bench.driver.status & Status.NEEDS_RESET


@pytest.mark.parametrize("chain", [bytes(HEADER_BYTES - 1), b"x"])
async def test_packet_without_a_header_breaks_the_device(guest: VsockGuest, chain: bytes) -> None:
    guest.send_chain(chain)

    await guest.bench.interrupt(0)

    assert guest.bench.driver.status & Status.NEEDS_RESET


async def test_packet_shorter_than_it_says_breaks_the_device(guest: VsockGuest) -> None:
    guest.send(Op.RW, PORT, GUEST_PORT, b"123", length=4)

    await guest.bench.interrupt(0)

    assert guest.bench.driver.status & Status.NEEDS_RESET
    assert "says 4 bytes follow; there are 3" in guest.bench.events.seen[-1][2]["reason"]


async def test_packet_of_another_type_or_to_another_host_is_refused(guest: VsockGuest) -> None:
    guest.send(Op.REQUEST, PORT, GUEST_PORT, type=2)
    await guest.hears(Op.RST, type=2, src_port=PORT)
    guest.send(Op.RW, PORT, GUEST_PORT, b"x")
    await guest.hears(Op.RST, src_port=PORT)
    guest.send(Op.REQUEST, PORT, GUEST_PORT, src_cid=CID + 1)
    guest.send(Op.RST, PORT, GUEST_PORT)
    await guest.hears_nothing()


async def test_packet_to_another_context_is_refused_in_its_name(guest: VsockGuest) -> None:
    guest.send(Op.REQUEST, PORT, GUEST_PORT, dst_cid=77)

    header, _ = await guest.receive(host_cid=77)
    assert header.op == Op.RST


def test_socket_is_removed_and_one_that_is_there_is_not_replaced() -> None:
    async def attempt(folder: Path) -> None:
        async with vsock_guest(folder):
            with pytest.raises(HostError, match=r"EADDRINUSE.*give the vsock device another"):
                async with vsock_guest(folder):
                    pass
            assert os.listdir(folder) == ["vsock"]
        assert os.listdir(folder) == []

    with tempfile.TemporaryDirectory(prefix="vsock-") as folder:
        trio.run(attempt, Path(folder))
