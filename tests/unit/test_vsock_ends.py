"""How vsock connections end: by either side, by half, by force, in time, and with the device."""

from __future__ import annotations

import errno
import os
import resource
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from tests.unit.vsock_guest import (
    CHUNK,
    VsockGuest,
    listener,
    read_all,
    read_line,
    vsock_guest,
)
from vmm.kvm_cffi import Virtqueue, VirtqueueChain
from vmm.virtio.queue import QueueState
from vmm.virtio.spec import Status
from vmm.virtio.vsock import EVENT
from vmm.vsock import switch
from vmm.vsock.packet import Closed, Op

GUEST_PORT = 1024
MANY = bytes(range(256)) * 512


@pytest.fixture(params=["split", "packed"])
async def guest(request: pytest.FixtureRequest) -> AsyncIterator[VsockGuest]:
    with tempfile.TemporaryDirectory(prefix="vsock-") as folder:
        async with vsock_guest(Path(folder)) as guest:
            guest.has_packed = request.param == "packed"
            await guest.start()
            yield guest


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guests have no time."""
    monkeypatch.setattr(switch, "ANSWER_SECONDS", 0.01)


async def test_host_that_says_no_more_may_still_listen(guest: VsockGuest) -> None:
    stream, port = await guest.called_by_host(GUEST_PORT)
    await stream.send_all(b"last words")
    await stream.send_eof()

    assert await guest.hears_data(10) == b"last words"
    await guest.hears(Op.SHUTDOWN, flags=Closed.SEND, src_port=port, dst_port=GUEST_PORT)
    guest.send(Op.RW, port, GUEST_PORT, b"answer")
    assert await read_all(stream, 6) == b"answer"
    await stream.aclose()
    await guest.hears(Op.SHUTDOWN, flags=Closed.BOTH)
    guest.send(Op.RST, port, GUEST_PORT)
    await guest.hears_nothing()


async def test_guest_that_says_no_more_may_still_listen(guest: VsockGuest) -> None:
    stream, port = await guest.called_by_host(GUEST_PORT)
    guest.send(Op.RW, port, GUEST_PORT, b"last words")
    guest.send(Op.SHUTDOWN, port, GUEST_PORT, flags=Closed.SEND)

    assert await read_all(stream, 11) == b"last words"
    await stream.send_all(b"answer")
    assert await guest.hears_data(6) == b"answer"
    guest.send(Op.SHUTDOWN, port, GUEST_PORT, flags=Closed.RECEIVE)
    await guest.hears(Op.RST, src_port=port)


async def test_host_that_leaves_is_told_after_what_it_sent_and_the_guest_ends_it(
    guest: VsockGuest,
) -> None:
    stream, port = await guest.called_by_host(GUEST_PORT)
    await stream.send_all(MANY[: 60 << 10])
    await stream.aclose()

    assert await guest.hears_data(60 << 10) == MANY[: 60 << 10]
    await guest.hears(Op.SHUTDOWN, flags=Closed.BOTH)
    guest.send(Op.RST, port, GUEST_PORT)
    await guest.hears_nothing()


async def test_guest_that_does_not_answer_the_end_is_reset(
    guest: VsockGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, port = await guest.called_by_host(GUEST_PORT)
    monkeypatch.setattr(switch, "ANSWER_SECONDS", 0.01)  # Not before: this guest answers the call.
    await stream.aclose()

    await guest.hears(Op.SHUTDOWN, flags=Closed.BOTH)
    await guest.hears(Op.RST, src_port=port, dst_port=GUEST_PORT)


@pytest.mark.usefixtures("soon")
async def test_guest_that_does_not_answer_a_call_is_reset_and_the_client_hung_up_on(
    guest: VsockGuest,
) -> None:
    async with await trio.open_unix_socket(guest.path) as stream:
        await stream.send_all(b"CONNECT 7\n")
        request = await guest.hears(Op.REQUEST)

        assert await read_line(stream) == b""
        await guest.hears(Op.RST, src_port=request.src_port, dst_port=7)


async def test_guest_that_closes_ends_it_and_the_host_gets_the_rest(guest: VsockGuest) -> None:
    stream, port = await guest.called_by_host(GUEST_PORT)
    sent = await guest.send_until_kept(port, GUEST_PORT, 1)
    guest.send(Op.SHUTDOWN, port, GUEST_PORT, flags=Closed.BOTH)

    await guest.hears(Op.RST, src_port=port)
    assert await read_all(stream, sent + 1) == CHUNK * (sent // len(CHUNK))
    await guest.hears_nothing()


async def test_port_used_again_is_not_lost_when_what_is_left_of_its_last_use_ends(
    guest: VsockGuest,
) -> None:
    path = f"{guest.path}_9"
    with listener(path) as server:
        guest.send(Op.REQUEST, 9, GUEST_PORT)
        first, _ = await server.accept()
        await guest.hears(Op.RESPONSE)
        sent = await guest.send_until_kept(9, GUEST_PORT, 1)
        guest.send(Op.SHUTDOWN, 9, GUEST_PORT, flags=Closed.BOTH)
        await guest.hears(Op.RST, src_port=9)

        guest.send(Op.REQUEST, 9, GUEST_PORT)
        second, _ = await server.accept()
        await guest.hears(Op.RESPONSE)
        async with trio.SocketStream(first) as stream, trio.SocketStream(second) as again:
            assert await read_all(stream, sent + 1) == CHUNK * (sent // len(CHUNK))
            guest.send(Op.RW, 9, GUEST_PORT, b"anew")
            assert await read_all(again, 4) == b"anew"
            await guest.hears_nothing()


async def test_guest_that_resets_ends_it_at_once(guest: VsockGuest) -> None:
    stream, port = await guest.called_by_host(GUEST_PORT)
    guest.send(Op.RST, port, GUEST_PORT)

    assert await read_all(stream, 1) == b""
    await guest.hears_nothing()


async def test_host_that_takes_no_more_is_told_to_the_guest_which_may_go_on(
    guest: VsockGuest,
) -> None:
    stream, port = await guest.called_by_host(GUEST_PORT)
    stream.socket.shutdown(socket.SHUT_RD)
    guest.send(Op.RW, port, GUEST_PORT, b"too late")

    await guest.hears(Op.SHUTDOWN, flags=Closed.RECEIVE)
    guest.send(Op.RW, port, GUEST_PORT, MANY[: 64 << 10])
    await guest.hears(Op.CREDIT_UPDATE, fwd_cnt=(64 << 10) + 8)
    await stream.send_all(b"still here")
    assert await guest.hears_data(10) == b"still here"


async def test_guest_that_takes_no_more_has_the_host_fail_to_write(guest: VsockGuest) -> None:
    stream, port = await guest.called_by_host(GUEST_PORT)
    guest.send(Op.SHUTDOWN, port, GUEST_PORT, flags=Closed.RECEIVE)
    await trio.testing.wait_all_tasks_blocked()

    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(b"x")
    guest.send(Op.RW, port, GUEST_PORT, b"still here")
    assert await read_all(stream, 10) == b"still here"
    await stream.aclose()
    await guest.hears(Op.SHUTDOWN, flags=Closed.BOTH)


@pytest.mark.parametrize("op", [Op.REQUEST, Op.RESPONSE, 0, 8, 0xFFFF])
async def test_packet_that_may_not_come_now_resets_the_connection(
    guest: VsockGuest, op: int
) -> None:
    stream, port = await guest.called_by_host(GUEST_PORT)
    guest.send(op, port, GUEST_PORT)

    await guest.hears(Op.RST, src_port=port)
    assert await read_all(stream, 1) == b""


@pytest.mark.parametrize("op", [Op.RW, Op.SHUTDOWN, Op.CREDIT_UPDATE, Op.CREDIT_REQUEST])
async def test_packet_before_the_answer_to_a_call_resets_it(guest: VsockGuest, op: Op) -> None:
    async with await trio.open_unix_socket(guest.path) as stream:
        await stream.send_all(b"CONNECT 7\n")
        request = await guest.hears(Op.REQUEST)
        guest.send(op, request.src_port, 7, flags=3)

        await guest.hears(Op.RST, src_port=request.src_port)
        assert await read_line(stream) == b""


async def test_data_after_the_guest_has_closed_resets_the_connection(guest: VsockGuest) -> None:
    _stream, port = await guest.called_by_host(GUEST_PORT)
    guest.send(Op.SHUTDOWN, port, GUEST_PORT, flags=Closed.SEND)
    guest.send(Op.RW, port, GUEST_PORT, b"x")

    await guest.hears(Op.RST, src_port=port)


async def test_places_are_bounded_and_the_silent_give_way(
    guest: VsockGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switch, "MOST_PEERS", 3)
    talking, port = await guest.called_by_host(GUEST_PORT)
    silent = [await guest.silent_client() for _ in range(2)]
    await trio.testing.wait_all_tasks_blocked()

    second, _ = await guest.called_by_host(2)
    assert await read_all(silent[0], 1) == b""
    third, _ = await guest.called_by_host(3)
    assert await read_all(silent[1], 1) == b""
    async with await trio.open_unix_socket(guest.path) as late:
        assert await read_all(late, 1) == b""
    guest.send(Op.REQUEST, 5000, 4)
    await guest.hears(Op.RST, src_port=5000)
    guest.send(Op.RW, port, GUEST_PORT, b"alive")
    assert await read_all(talking, 5) == b"alive"
    del second, third


@pytest.fixture
def scarce() -> Iterator[None]:
    """The process may open as many files as it has, and fifty, and as many once more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = 2 * (len(os.listdir("/proc/self/fd")) + 50)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("scarce")
async def test_guest_leaves_the_program_half_of_its_descriptors(guest: VsockGuest) -> None:
    with listener(f"{guest.path}_9") as server:
        server.listen(1024)
        answers = [Op.RESPONSE]
        while answers[-1] == Op.RESPONSE:
            guest.send(Op.REQUEST, 9, GUEST_PORT + len(answers))
            header, _ = await guest.receive()
            answers.append(Op(header.op))

        assert len(answers) > 40
        for fd in [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]:
            os.close(fd)


async def test_guest_that_calls_on_a_host_out_of_descriptors_does_not_fill_the_log(
    guest: VsockGuest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*arguments: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", failing)
    for port in range(100):
        guest.send(Op.REQUEST, 9, port)
        await guest.hears(Op.RST, src_port=9)

    told = [record for record in caplog.records if "cannot make a socket" in record.message]
    assert 1 <= len(told) <= 7


async def test_host_out_of_descriptors_accepts_later(
    guest: VsockGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switch, "ACCEPT_RETRY_SECONDS", 0.01)
    failures = [OSError(errno.EMFILE, "Too many open files")]
    accept = socket.socket.accept

    def failing(self: socket.socket) -> tuple[socket.socket, object]:
        if failures:
            raise failures.pop()
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", failing)

    await guest.called_by_host(GUEST_PORT)

    assert failures == []


async def test_reset_of_the_device_ends_all_and_it_serves_again(guest: VsockGuest) -> None:
    stream, _ = await guest.called_by_host(GUEST_PORT)
    silent = await guest.silent_client()
    await trio.testing.wait_all_tasks_blocked()

    await guest.start()

    assert await read_all(stream, 1) == b""
    assert await read_all(silent, 1) == b""
    await guest.called_by_host(GUEST_PORT)


@pytest.mark.parametrize("index", [0, 1, 2])
async def test_queue_that_is_reset_holds_up_its_own_direction_only(
    guest: VsockGuest, index: int
) -> None:
    stream, port = await guest.called_by_host(GUEST_PORT)
    await guest.reset_queue(index)
    await stream.send_all(b"to the guest")
    if index != 1:
        guest.send(Op.RW, port, GUEST_PORT, b"to the host")
        assert await read_all(stream, 11) == b"to the host"

    await guest.give_queue(index)
    if index == 0:
        guest.post(8)
    if index == 1:
        guest.send(Op.RW, port, GUEST_PORT, b"to the host")
        assert await read_all(stream, 11) == b"to the host"
    assert await guest.hears_data(12) == b"to the guest"
    assert not guest.bench.driver.status & Status.NEEDS_RESET


async def test_pause_keeps_connections(guest: VsockGuest) -> None:
    stream, port = await guest.called_by_host(GUEST_PORT)
    await guest.bench.transport.sleep()
    await stream.send_all(b"while it slept")
    guest.send(Op.RW, port, GUEST_PORT, b"likewise")
    await guest.hears_nothing()

    guest.bench.transport.wake()

    assert await guest.hears_data(14) == b"while it slept"
    assert await read_all(stream, 8) == b"likewise"


async def test_pause_is_no_time_in_which_the_guest_could_have_answered(
    mock_clock: trio.testing.MockClock, guest: VsockGuest
) -> None:
    stream = await guest.silent_client()
    await stream.send_all(b"CONNECT 7\n")
    request = await guest.hears(Op.REQUEST)

    await guest.bench.transport.sleep()
    mock_clock.jump(2 * switch.ANSWER_SECONDS)
    guest.bench.transport.wake()
    await guest.hears_nothing()

    guest.send(Op.RESPONSE, request.src_port, 7)
    assert await read_line(stream) == b"OK %d\n" % request.src_port


async def test_driver_of_a_restored_device_hears_that_all_is_gone(guest: VsockGuest) -> None:
    guest.bench.device.load(guest.bench.device.save())
    await guest.start()
    guest.bench.device.load(guest.bench.device.save())
    await guest.bench.transport.sleep()
    guest.bench.transport.wake()
    await trio.testing.wait_all_tasks_blocked()

    guest.post_event()

    assert await guest.event() == bytes(4)
    await guest.called_by_host(GUEST_PORT)


async def test_room_for_an_event_that_comes_while_the_device_looks_needs_no_kick(
    guest: VsockGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    await guest.bench.transport.sleep()
    guest.bench.device.load(guest.bench.device.save())
    pop = Virtqueue.pop
    posted: list[bool] = []

    def pop_and_post(queue: Virtqueue[QueueState]) -> VirtqueueChain | None:
        chain = pop(queue)
        if queue.index == EVENT and chain is None and not posted:
            posted.append(guest.add_event())
        return chain

    monkeypatch.setattr(Virtqueue, "pop", pop_and_post)

    guest.bench.transport.wake()

    assert await guest.event() == bytes(4)
    assert posted == [True]


async def test_nothing_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with tempfile.TemporaryDirectory(prefix="vsock-") as folder:
        async with vsock_guest(Path(folder)) as guest:
            await guest.start()
            streams = [(await guest.called_by_host(port))[0] for port in range(20)]
            streams += [await guest.call_host(5000, 6000 + port) for port in range(20)]
            for stream in streams[::2]:
                await stream.aclose()
        for stream in streams:
            await stream.aclose()

    assert len(os.listdir("/proc/self/fd")) == before
