"""The clients against the real API server: what each method sends, what it makes of the answer."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.unit.api_fixture import ABOUT, FakeOwner, serving
from tests.unit.client_calls import CASES, CONFIG, Case
from vmm.api.openapi import document
from vmm.api.paths import ROUTES
from vmm.client import ApiError, AsyncClient, Client, calls
from vmm.client.http import Reply
from vmm.config.document import parse_document
from vmm.config.info import PciDeviceInfo, VmState
from vmm.config.net import NetConfig
from vmm.errors import ConfigError, NotCreatedError, StateError
from vmm.machine import commands

Ask = Callable[[str, Case], Awaitable[object]]


async def by_blocking(path: str, case: Case) -> object:
    method = getattr(Client(path, timeout=10), case.method)
    return await trio.to_thread.run_sync(partial(method, *case.arguments, **case.keywords))


async def by_trio(path: str, case: Case) -> object:
    return await getattr(AsyncClient(path), case.method)(*case.arguments, **case.keywords)


async def by_asyncio(path: str, case: Case) -> object:
    def run() -> object:
        method = getattr(AsyncClient(path), case.method)
        return asyncio.run(method(*case.arguments, **case.keywords))

    return await trio.to_thread.run_sync(run)


@pytest.fixture(params=[by_blocking, by_trio, by_asyncio], ids=lambda each: each.__name__[3:])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Call a method of a client, by each way there is to wait."""
    chosen: Ask = request.param
    return chosen


def case_of(method: str) -> Case:
    return next(case for case in CASES if case.method == method)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.method)
def test_method_sends_a_request_of_the_document(case: Case) -> None:
    routes = {f"{route.method} {route.path}": route for route in ROUTES}
    call = getattr(calls, case.method)(*case.arguments, **case.keywords)

    route = routes[case.request]

    assert f"{call.method} {call.path}" == case.request
    assert (call.body is None) == (route.model is None)
    if route.model is not None:
        assert parse_document(route.model, call.body) == case.model


def test_every_path_has_a_case_and_every_case_a_method_of_both_clients() -> None:
    assert {case.request.partition(" ")[2] for case in CASES} == set(document()["paths"]) - {
        "/vmm.nmi"  # The same as /vm.nmi, which every version of the server knows.
    }
    for client in (Client, AsyncClient):
        methods = {name for name, value in vars(client).items() if inspect.isfunction(value)} - {
            "send",
            "__init__",
        }
        assert methods == {case.method for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.method)
def test_method_shows_the_parameters_and_words_of_its_call(case: Case) -> None:
    call = getattr(calls, case.method)

    for client in (Client("/none"), AsyncClient("/none")):
        method = getattr(client, case.method)
        assert inspect.signature(method).parameters == inspect.signature(call).parameters
        assert method.__doc__ == call.__doc__


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.method)
async def test_method_is_answered_as_its_route_says(case: Case, ask: Ask, tmp_path: Path) -> None:
    owner = FakeOwner()
    async with serving(owner, tmp_path) as api:
        try:
            answer: object = await ask(api.path, case)
        except ApiError as error:
            answer = error.status

    if case.request.startswith("GET"):
        wanted = {
            "ping": ABOUT,
            "info": owner.info(),
            "counters": owner.counters(),
            "migration": owner.migration(),
        }
        assert answer == wanted[case.method]
    else:
        assert answer is None
        assert len(owner.commands) == 1


async def test_create_gives_the_configuration(ask: Ask, tmp_path: Path) -> None:
    owner = FakeOwner()
    async with serving(owner, tmp_path) as api:
        await ask(api.path, case_of("create"))

    assert owner.commands == [commands.Create(CONFIG)]


async def test_bytes_are_created_as_they_are(ask: Ask, tmp_path: Path) -> None:
    owner = FakeOwner()
    body = b'{"payload": {"kernel": "/boot/vmlinuz"}, "nonsense": 1}'
    async with serving(owner, tmp_path) as api:
        await ask(api.path, Case("create", "", arguments=(body,)))

    assert owner.commands == [commands.Create(CONFIG)]


async def test_device_that_was_added_has_its_place(ask: Ask, tmp_path: Path) -> None:
    place = PciDeviceInfo(id="_disk0", bdf="0000:00:05.0")
    async with serving(FakeOwner(place=place), tmp_path) as api:
        answer = await ask(api.path, case_of("add_disk"))

    assert answer == place


async def test_body_larger_than_a_socket_holds_arrives(ask: Ask, tmp_path: Path) -> None:
    owner = FakeOwner()
    body = b'{"payload": {"kernel": "/boot/vmlinuz"}}'.ljust(3 << 20)
    async with serving(owner, tmp_path) as api:
        await ask(api.path, Case("create", "", arguments=(body,)))

    assert owner.commands == [commands.Create(CONFIG)]


async def test_body_too_large_is_refused_with_the_limit(ask: Ask, tmp_path: Path) -> None:
    async with serving(FakeOwner(), tmp_path) as api:
        with pytest.raises(ApiError) as caught:
            await ask(api.path, Case("create", "", arguments=(b" " * (5 << 20),)))

    assert caught.value.status == 413


async def test_refusal_has_status_and_chain(ask: Ask, tmp_path: Path) -> None:
    error = StateError("The VM does not run")
    async with serving(FakeOwner(error), tmp_path) as api:
        with pytest.raises(ApiError) as caught:
            await ask(api.path, case_of("pause"))

    assert caught.value.status == 405
    assert caught.value.messages == (
        "Error from API",
        "The VM could not be paused",
        "The VM does not run",
    )
    assert str(caught.value) == (
        "vm.pause was answered 405 Method Not Allowed:"
        " Error from API: The VM could not be paused: The VM does not run"
    )


async def test_refused_configuration_names_every_fault(ask: Ask, tmp_path: Path) -> None:
    body = b'{"cpus": {"boot_vcpus": 0, "max_vcpus": "two"}}'
    async with serving(FakeOwner(), tmp_path) as api:
        with pytest.raises(ApiError) as caught:
            await ask(api.path, Case("create", "", arguments=(body,)))

    assert caught.value.status == 400
    assert [text.split()[0] for text in caught.value.messages[1:]] == [
        "cpus.boot_vcpus",
        "cpus.max_vcpus",
    ]


async def test_requests_of_one_trio_client_go_side_by_side(tmp_path: Path) -> None:
    owner = FakeOwner(gate=trio.Event())
    async with serving(owner, tmp_path) as api, trio.open_nursery() as nursery:
        client = AsyncClient(api.path)
        nursery.start_soon(client.boot)
        await owner.asked.wait()
        about = await client.ping()
        assert owner.gate is not None
        owner.gate.set()

    assert about == ABOUT


async def test_blocking_client_that_waits_too_long_says_so(tmp_path: Path) -> None:
    owner = FakeOwner(gate=trio.Event())
    async with serving(owner, tmp_path) as api:
        with pytest.raises(TimeoutError):
            await trio.to_thread.run_sync(Client(api.path, timeout=0.05).boot)
        assert owner.gate is not None
        owner.gate.set()


async def test_missing_vm_is_a_404(ask: Ask, tmp_path: Path) -> None:
    async with serving(FakeOwner(NotCreatedError("There is no VM")), tmp_path) as api:
        with pytest.raises(ApiError) as caught:
            await ask(api.path, case_of("info"))

    assert caught.value.status == 404


def test_answer_keeps_descriptors_and_passes_over_newer_fields(
    caplog: pytest.LogCaptureFixture,
) -> None:
    body = b'{"config": {"net": [{"fds": [9], "new": 1}]}, "state": "Running", "newer": 2}'

    info = calls.info().result(Reply(200, {}, body))

    assert info.state is VmState.RUNNING
    assert info.config.net == (NetConfig(fds=(9,)),)
    assert caplog.records == []


def test_create_with_open_files_is_refused_before_it_is_sent() -> None:
    config = CONFIG.model_copy(update={"net": (NetConfig(fds=(5,)),)})

    with pytest.raises(ConfigError, match=r"vm\.add-net"):
        calls.create(config)
