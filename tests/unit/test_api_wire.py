"""What stands on the wire: the forms of request that clients send, and the bytes they look for."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.unit.api_fixture import FakeOwner, read_answer, serving
from vmm.api.errors import BODY_LIMIT
from vmm.machine import commands

PING = b"GET /api/v1/vmm.ping HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"
DELETE = b"PUT /api/v1/vm.delete HTTP/1.1\r\nHost: localhost\r\n\r\n"
CREATE_HEAD = b"PUT /api/v1/vm.create HTTP/1.1\r\nHost: localhost\r\n"
CONFIG = b'{"payload": {"kernel": "/boot/vmlinuz"}}'
REQUESTS_PAST_EVERY_LIMIT = 1100


async def test_answer_spells_its_headers_in_title_case(tmp_path: Path) -> None:
    async with serving(FakeOwner(), tmp_path) as api, await api.connect() as stream:
        await stream.send_all(PING)
        head, body = await read_answer(stream)

    status, *headers = head.split(b"\r\n")
    assert status.startswith(b"HTTP/1.1 200")
    assert headers == [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]


async def test_answer_without_content_has_no_headers(tmp_path: Path) -> None:
    async with serving(FakeOwner(), tmp_path) as api, await api.connect() as stream:
        await stream.send_all(DELETE)
        head, _ = await read_answer(stream)

    assert head.rstrip() == b"HTTP/1.1 204"


async def test_one_connection_serves_more_requests_than_any_default_limit(tmp_path: Path) -> None:
    async with serving(FakeOwner(), tmp_path) as api, await api.connect() as stream:
        for _ in range(REQUESTS_PAST_EVERY_LIMIT):
            await stream.send_all(PING)
            head, _ = await read_answer(stream)
            assert b" 200 " in head


async def test_pipelined_requests_are_answered_in_their_order(tmp_path: Path) -> None:
    owner = FakeOwner()
    async with serving(owner, tmp_path) as api, await api.connect() as stream:
        await stream.send_all(DELETE + PING.replace(b"HTTP/1.1", b"HTTP/1.1\r\nConnection: close"))
        answers = b"".join([bytes(data) async for data in stream])

    assert answers.startswith(b"HTTP/1.1 204 \r\n\r\nHTTP/1.1 200 ")
    assert owner.commands == [commands.Delete()]


async def test_body_in_chunks_is_read(tmp_path: Path) -> None:
    owner = FakeOwner()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in CONFIG) + b"0\r\n\r\n"
    async with serving(owner, tmp_path) as api, await api.connect() as stream:
        await stream.send_all(CREATE_HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
        head, _ = await read_answer(stream)

    assert b" 204 " in head
    assert len(owner.commands) == 1


async def test_empty_body_in_chunks_is_no_body(tmp_path: Path) -> None:
    owner = FakeOwner()
    head = DELETE.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")
    async with serving(owner, tmp_path) as api, await api.connect() as stream:
        await stream.send_all(head + b"0\r\n\r\n")
        answer, _ = await read_answer(stream)

    assert b" 204 " in answer
    assert owner.commands == [commands.Delete()]


async def test_client_that_asks_to_continue_is_told_to(tmp_path: Path) -> None:
    owner = FakeOwner()
    head = CREATE_HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(CONFIG)
    async with serving(owner, tmp_path) as api, await api.connect() as stream:
        await stream.send_all(head)
        interim, _ = await read_answer(stream)
        await stream.send_all(CONFIG)
        final, _ = await read_answer(stream)

    assert (b" 100 " in interim, b" 204 " in final) == (True, True)


async def test_endless_body_in_chunks_gives_413(tmp_path: Path) -> None:
    async with serving(FakeOwner(), tmp_path) as api, await api.connect() as stream:
        await stream.send_all(CREATE_HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        for _ in range(BODY_LIMIT // 0x10000 + 1):
            await stream.send_all(chunk)
        await stream.send_all(b"0\r\n\r\n")
        head, _ = await read_answer(stream)

    assert b" 413 " in head


async def test_refused_body_is_read_to_its_end_and_the_connection_kept(tmp_path: Path) -> None:
    size = BODY_LIMIT + 1
    async with serving(FakeOwner(), tmp_path) as api, await api.connect() as stream:
        await stream.send_all(CREATE_HEAD + b"Content-Length: %d\r\n\r\n" % size + b" " * size)
        refusal, _ = await read_answer(stream)
        await stream.send_all(PING)
        after, _ = await read_answer(stream)

    assert (b" 413 " in refusal, b" 200 " in after) == (True, True)


@pytest.mark.parametrize("target", [b"http://localhost/api/v1/vmm.ping", b"/api/v1/vmm.ping?x=1"])
async def test_other_forms_of_the_address_are_understood(target: bytes, tmp_path: Path) -> None:
    async with serving(FakeOwner(), tmp_path) as api, await api.connect() as stream:
        await stream.send_all(PING.replace(b"/api/v1/vmm.ping", target))
        head, _ = await read_answer(stream)

    assert b" 200 " in head


@pytest.mark.parametrize("target", [b"?x", b"*", b"http://[/", b"//", b"/%ff%00", b"/api/v1"])
async def test_address_of_nothing_gives_404(target: bytes, tmp_path: Path) -> None:
    async with serving(FakeOwner(), tmp_path) as api, await api.connect() as stream:
        await stream.send_all(PING.replace(b"/api/v1/vmm.ping", target))
        head, body = await read_answer(stream)

    assert (b" 404 " in head, body) == (True, b'["Not Found"]')


@pytest.mark.parametrize(
    "request_",
    [
        b"\r\n\r\n\0nonsense\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5, 6\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A" * 20_000,
    ],
    ids=["no HTTP", "no address", "negative length", "two lengths", "endless header"],
)
async def test_malformed_request_is_refused_and_others_are_served(
    request_: bytes, tmp_path: Path
) -> None:
    async with serving(FakeOwner(), tmp_path) as api, await api.connect() as stream:
        await stream.send_all(request_)
        head, _ = await read_answer(stream)
        end = await stream.receive_some()
        after = await api.ask("GET", "/vmm.ping")

    assert head.split()[1].startswith(b"4")
    assert (end, after.status_code) == (b"", 200)


async def test_upgrade_to_a_websocket_is_refused_and_others_are_served(tmp_path: Path) -> None:
    upgrade = b"\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
    async with serving(FakeOwner(), tmp_path) as api, await api.connect() as stream:
        await stream.send_all(PING.replace(b"\r\n\r\n", upgrade))
        head = bytes(await stream.receive_some())
        after = await api.ask("GET", "/vmm.ping")

    assert head.split()[1].startswith(b"4")
    assert after.status_code == 200


async def test_many_clients_are_served_at_once(tmp_path: Path) -> None:
    answered: list[bytes] = []

    async with serving(FakeOwner(), tmp_path) as api:

        async def ping() -> None:
            async with await api.connect() as stream:
                await stream.send_all(PING)
                head, _ = await read_answer(stream)
                answered.append(head)

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(ping)

    assert len(answered) == 100
