"""A live VMM with a running guest is sent what its document's schemas allow, and nearly allow."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.kvm.guests import programs
from tests.kvm.guests.image import write_kernel
from tests.kvm.guests.processes import SECONDS, SMALL
from tests.property.schema_values import fitting, nearly_fitting
from vmm.api.openapi import document
from vmm.api.paths import ROUTES
from vmm.client import Client, ConnectError
from vmm.client.http import READ_SIZE, Conversation, Reply
from vmm.errors import HostError
from vmm.kvm_cffi import Kvm
from vmm.testing.schema import Document

pytestmark = pytest.mark.kvm

LEFT_OUT = {
    "/vmm.shutdown",
    "/vm.shutdown",
    "/vm.delete",
    "/vm.reboot",
    "/vm.nmi",
    "/vmm.nmi",  # These end what the others are tried on: this guest knows no NMI and is reset.
    "/vm.add-net",  # It makes interfaces of the host.
}
TRIED = [route for route in ROUTES if route.path not in LEFT_OUT]


class Request(NamedTuple):
    """What is sent; ``body`` is None for none."""

    method: str
    path: str
    body: bytes | None


@st.composite
def requests(draw: st.DrawFn) -> Request:
    route = draw(st.sampled_from(TRIED))
    if route.model is None:
        return Request(route.method, route.path, draw(st.sampled_from([None, None, b"{}"])))
    make = draw(st.sampled_from([fitting, nearly_fitting]))
    body = draw(make(route.model.__name__))
    return Request(route.method, route.path, json.dumps(body).encode())


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    """The socket of a VMM whose guest runs; it still does after all requests, and ends in order."""
    try:
        Kvm.open().close()
    except HostError as error:
        pytest.skip(f"/dev/kvm cannot be used: {error}")
    with tempfile.TemporaryDirectory(prefix="vmm-") as name:
        folder = Path(name)
        path, kernel = str(folder / "api.sock"), write_kernel(folder, programs.HALT)
        command = [sys.executable, "-m", "vmm", "--api-socket", path, "--kernel", str(kernel)]
        with (
            (folder / "errors").open("w+") as errors,
            # What requests name without a folder stays in this one.
            subprocess.Popen([*command, *SMALL], cwd=folder, stderr=errors) as process,
        ):
            try:
                wait_until_served(path)
                yield path
                assert Client(path, timeout=SECONDS).info().state in ("Running", "Paused")
            finally:
                process.terminate()
                code = process.wait(SECONDS)
            text = (folder / "errors").read_text()
        assert code == 0, text
        assert "Traceback" not in text


def wait_until_served(path: str) -> None:
    end = time.monotonic() + SECONDS
    while True:
        # There is nothing to wait on before the socket is there.
        try:
            Client(path, timeout=SECONDS).ping()
        except ConnectError:
            assert time.monotonic() < end, "the VMM does not serve"
            time.sleep(0.01)
        else:
            return


def send(path: str, request: Request) -> Reply:
    conversation = Conversation()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS)
        connection.connect(path)
        connection.sendall(conversation.ask(*request))
        while (reply := conversation.hear(connection.recv(READ_SIZE))) is None:
            pass
    return reply


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(request=requests())
def test_every_request_is_answered_as_the_document_says(api: str, request: Request) -> None:
    reply = send(api, request)

    body = reply.json if reply.body else None
    event(f"{request.path} {reply.status}")
    judge = Document(document())
    assert list(judge.answer_faults(request.method, request.path, reply.status, body)) == []
    if reply.status == 500:
        # The host may refuse what the caller names; the program itself must not fail.
        texts = reply.json
        assert texts[0] == "Error from API", texts
        assert any(" failed: " in text for text in texts), texts
