"""Requests that a client should not have sent: each has its status, and the next is served."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from tests.kvm.guests import programs
from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.processes import (
    SECONDS,
    machine,
    resources,
    running,
    short_folder,
    wait_for_event,
)
from vmm.testing.process import VmmProcess

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

place = short_folder

BODY_LIMIT = 4 << 20
READ_SIZE = 65536


class Answer(NamedTuple):
    """What came back on the wire."""

    status: int
    body: bytes


async def send(vmm: VmmProcess, request: bytes) -> Answer:
    """Send bytes on a connection of their own and read the answer."""
    async with await trio.open_unix_socket(str(vmm.directory / "api.sock")) as stream:
        with trio.fail_after(SECONDS):
            await stream.send_all(request)
            data = b""
            while b"\r\n\r\n" not in data:
                data += await read(stream)
            head, _, body = data.partition(b"\r\n\r\n")
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            while len(body) < length:
                body += await read(stream)
    return Answer(int(head.split()[1]), body)


async def read(stream: trio.SocketStream) -> bytes:
    data = await stream.receive_some(READ_SIZE)
    assert data, "the connection was closed without an answer"
    return bytes(data)


def put(name: str, body: bytes, method: str = "PUT") -> bytes:
    head = f"{method} /api/v1/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
    return f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def create(config: Mapping[str, object]) -> bytes:
    return put("vm.create", json.dumps(config).encode())


KERNEL = {"payload": {"kernel": "/boot/kernel"}}
BAD = {
    "JSON cut off": (put("vm.create", b'{"payload":'), 400, "not valid JSON"),
    "no JSON at all": (put("vm.create", b"\xff\xfe\x00"), 400, "not valid JSON"),
    "nested too deeply": (put("vm.create", b"[" * 100_000), 400, "not valid JSON"),
    "no object": (put("vm.create", b"[1]"), 400, "Failed to deserialize"),
    "no body": (put("vm.create", b""), 400, "needs a body"),
    "a body too many": (put("vm.boot", b"{}"), 400, "takes no body"),
    "text for a size": (create({**KERNEL, "memory": {"size": "much"}}), 400, "memory.size"),
    "negative vCPUs": (
        create({**KERNEL, "cpus": {"boot_vcpus": -1, "max_vcpus": 1}}), 400, "cpus.boot_vcpus",
    ),
    "a list for an object": (create({"payload": []}), 400, "payload"),
    "null for an object": (create({**KERNEL, "cpus": None}), 400, "cpus"),
    "an unknown mode": (create({**KERNEL, "serial": {"mode": "Loud"}}), 400, "serial.mode"),
    "a body too large": (put("vm.create", b" " * (BODY_LIMIT + 1)), 413, str(BODY_LIMIT)),
    "a wrong method": (put("vm.boot", b"", "GET"), 405, "takes PUT, not GET"),
    "an unknown address": (put("vm.explode", b""), 404, "Not Found"),
    "no VM": (put("vm.pause", b""), 404, "VM is not created"),
    "no VM to boot": (put("vm.boot", b""), 404, "VM config is missing"),
    "no VM to save": (put("vm.snapshot", b'{"destination_url": "file:///"}'), 404, "not created"),
}  # fmt: skip
"""Requests to a VMM without a VM: what is sent, the status, and a part of the answer."""


async def test_bad_requests_have_their_status_and_the_vmm_goes_on(place: Path) -> None:
    async with running(place) as vmm:
        descriptors = resources(vmm)
        for name, (request, status, text) in BAD.items():
            answer = await send(vmm, request)

            assert answer.status == status, (name, answer)
            texts = json.loads(answer.body)
            assert any(text in each for each in texts), (name, texts)
            assert (await vmm.api("GET", "vmm.ping")).status == 200
            assert (await vmm.api("GET", "vm.info")).status == 404
        assert resources(vmm) == descriptors


async def test_requests_in_the_wrong_state_are_refused(place: Path) -> None:
    config = machine(write_kernel(place, programs.SPIN))
    needs_machine = ("vm.pause", "vm.resume", "vm.reboot", "vm.nmi", "vm.power-button")
    async with running(place) as vmm:
        await vmm.put("vm.create", config)
        for name in (*needs_machine, "vm.shutdown"):
            assert (await vmm.api("PUT", name)).status == 405, name
        assert (await vmm.api("PUT", "vm.create", config)).status == 405

        await vmm.put("vm.boot")
        for name in ("vm.boot", "vm.resume"):
            assert (await vmm.api("PUT", name)).status == 405, name

        await vmm.put("vm.pause")
        reply = await vmm.api("PUT", "vm.pause")
        assert reply.status == 405
        assert "invalid VM state transition: Paused to Paused" in reply.json[-1]
        assert (await vmm.info())["state"] == "Paused"


async def test_client_that_hangs_up_in_the_middle_does_not_stop_its_command(place: Path) -> None:
    memory = {"size": 512 << 20, "prefault": True}
    config = json.dumps(machine(write_kernel(place, programs.SPIN), memory=memory)).encode()
    async with running(place) as vmm:
        whole = put("vm.create", config)
        for end in (1, 30, whole.index(b"\r\n\r\n") + 10, len(whole) - 1):
            async with await trio.open_unix_socket(str(place / "api.sock")) as stream:
                await stream.send_all(whole[:end])
        assert (await vmm.api("GET", "vm.info")).status == 404

        await vmm.put("vm.create", json.loads(config))
        async with await trio.open_unix_socket(str(place / "api.sock")) as stream:
            await stream.send_all(put("vm.boot", b""))
            await wait_for_event(vmm, "vm:booting")
        await vmm.wait_for_state("Running", SECONDS)


async def test_many_clients_at_once_are_all_answered(place: Path) -> None:
    config = machine(write_kernel(place, programs.ASK_THE_LOOP))
    statuses = []

    async def ask(name: str, method: str) -> None:
        statuses.append((name, (await vmm.api(method, name)).status))

    async with running(place) as vmm:
        await vmm.put("vm.create", config)
        await vmm.put("vm.boot")
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(ask, "vm.info", "GET")
                nursery.start_soon(ask, "vm.reboot", "PUT")

        assert all(status in (200, 204) for _, status in statuses), statuses
        assert vmm.events().count("vm:rebooted") == 8
