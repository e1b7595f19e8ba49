"""Every route: the command it becomes, and the status of each way it can fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.api_fixture import ABOUT, FakeOwner, serving
from vmm.api.errors import BODY_LIMIT
from vmm.api.paths import ROUTES
from vmm.api.routes import Route
from vmm.config.info import PciDeviceInfo
from vmm.config.pci import PciSlot
from vmm.config.requests import VmResize, VmResizeZone
from vmm.config.vm import VmConfig
from vmm.errors import (
    AlreadyCreatedError,
    ConfigError,
    DuplicateError,
    GuestError,
    HostError,
    InternalError,
    NotCreatedError,
    NotFoundError,
    PeerError,
    PendingError,
    StateError,
    UnsupportedError,
    VmmError,
)
from vmm.machine import commands
from vmm.machine.commands import Command

CONFIG = b'{"payload": {"kernel": "/boot/vmlinuz"}}'
COMMANDS: dict[str, Command] = {
    "/vm.delete": commands.Delete(),
    "/vm.boot": commands.Boot(),
    "/vm.pause": commands.Pause(),
    "/vm.resume": commands.Resume(),
    "/vm.shutdown": commands.Shutdown(),
    "/vm.reboot": commands.Reboot(),
    "/vm.power-button": commands.PowerButton(),
    "/vm.nmi": commands.Nmi(),
    "/vmm.nmi": commands.Nmi(),
    "/vmm.shutdown": commands.ShutdownVmm(),
    "/vm.migration-cancel": commands.CancelMigration(),
}
STATUSES = {
    ConfigError: 400,
    DuplicateError: 409,
    UnsupportedError: 501,
    AlreadyCreatedError: 404,
    NotCreatedError: 404,
    NotFoundError: 404,
    PendingError: 429,
    StateError: 405,
}
DECLARED = [
    pytest.param(route, kind, id=f"{route.path}-{kind.__name__}")
    for route in ROUTES
    for kind in STATUSES
    if kind in route.errors
]
SILENT_GUEST = GuestError("The guest broke its promise")
NO_DEVICE = HostError("open", 2, path="/dev/kvm", hint="load the kvm module")


ADDED: dict[str, tuple[str, dict[str, object]]] = {
    "/vm.add-device": ("devices", {"path": "/sys/bus/pci/devices/0000:01:00.0"}),
    "/vm.add-disk": ("disks", {"path": "/disk.raw", "id": "data"}),
    "/vm.add-fs": ("fs", {"tag": "shared", "socket": "/fs.sock"}),
    "/vm.add-generic-vhost-user": (
        "generic_vhost_user",
        {"socket": "/s", "queue_sizes": [64], "device_type": 26},
    ),
    "/vm.add-net": ("net", {"tap": "tap0"}),
    "/vm.add-pmem": ("pmem", {"file": "/pmem.raw"}),
    "/vm.add-user-device": ("user_devices", {"socket": "/user.sock"}),
    "/vm.add-vdpa": ("vdpa", {"path": "/dev/vhost-vdpa-0"}),
    "/vm.add-vsock": ("vsock", {"cid": 3, "socket": "/vsock.sock"}),
}
"""Of each request that adds a device: the section, and a body."""
BODIES = {
    "/vm.create": CONFIG,
    "/vm.resize": b'{"desired_vcpus": 2, "desired_ram": 1073741824, "desired_balloon": 0}',
    "/vm.resize-zone": b'{"id": "near", "desired_ram": 1073741824}',
    "/vm.snapshot": b'{"destination_url": "file:///tmp/snapshot"}',
    "/vm.restore": b'{"source_url": "file:///tmp/snapshot"}',
    "/vm.coredump": b'{"destination_url": "file:///tmp/core"}',
    "/vm.resize-disk": b'{"id": "root", "desired_size": 1048576}',
    "/vm.remove-device": b'{"id": "data"}',
    "/vm.send-migration": b'{"destination_url": "tcp:host:1", "connections": 4}',
    "/vm.receive-migration": b'{"receiver_url": "unix:/run/a.sock"}',
    **{path: json.dumps(body).encode() for path, (_, body) in ADDED.items()},
}


def body_for(route: Route) -> bytes | None:
    return None if route.model is None else BODIES[route.path]


@pytest.mark.parametrize("path", COMMANDS)
async def test_route_without_body_gives_its_command_and_204(path: str, tmp_path: Path) -> None:
    owner = FakeOwner()
    async with serving(owner, tmp_path) as api:
        answer = await api.ask("PUT", path)

    assert (answer.status_code, answer.content) == (204, b"")
    assert owner.commands == [COMMANDS[path]]


async def test_create_gives_the_configuration_to_the_owner(tmp_path: Path) -> None:
    owner = FakeOwner()
    async with serving(owner, tmp_path) as api:
        answer = await api.ask("PUT", "/vm.create", CONFIG)

    assert answer.status_code == 204
    assert owner.commands == [commands.Create(VmConfig.model_validate(json.loads(CONFIG)))]


async def test_resize_disk_gives_name_and_size_to_the_owner(tmp_path: Path) -> None:
    owner = FakeOwner()
    async with serving(owner, tmp_path) as api:
        answer = await api.ask("PUT", "/vm.resize-disk", BODIES["/vm.resize-disk"])

    assert answer.status_code == 204
    assert owner.commands == [commands.ResizeDisk("root", 1 << 20)]


async def test_resize_asks_for_each_amount_that_is_given(tmp_path: Path) -> None:
    owner = FakeOwner()
    async with serving(owner, tmp_path) as api:
        whole = await api.ask("PUT", "/vm.resize", BODIES["/vm.resize"])
        part = await api.ask("PUT", "/vm.resize", b'{"desired_ram": 4096}')
        zone = await api.ask("PUT", "/vm.resize-zone", BODIES["/vm.resize-zone"])

    assert (whole.status_code, part.status_code, zone.status_code) == (204, 204, 204)
    assert owner.commands == [
        commands.Resize(VmResize(desired_vcpus=2, desired_ram=1 << 30, desired_balloon=0)),
        commands.Resize(VmResize(desired_ram=4096)),
        commands.Resize(VmResizeZone(id="near", desired_ram=1 << 30)),
    ]


@pytest.mark.parametrize("path", ADDED)
async def test_added_device_goes_to_its_section_and_answers_with_its_place(
    path: str, tmp_path: Path
) -> None:
    owner = FakeOwner(place=PciDeviceInfo(id="data", bdf="0000:00:05.0"))
    section, body = ADDED[path]
    async with serving(owner, tmp_path) as api:
        running = await api.ask("PUT", path, BODIES[path])
        owner.place = None
        created = await api.ask("PUT", path, BODIES[path])

    assert (running.status_code, created.status_code, created.content) == (200, 204, b"")
    assert running.json() == {"id": "data", "bdf": "0000:00:05.0"}
    model = next(route.model for route in ROUTES if route.path == path)
    assert model is not None
    assert issubclass(model, PciSlot)
    assert owner.commands == [commands.AddDevice(section, model.model_validate(body))] * 2


async def test_remove_device_gives_its_name_to_the_owner(tmp_path: Path) -> None:
    owner = FakeOwner()
    async with serving(owner, tmp_path) as api:
        answer = await api.ask("PUT", "/vm.remove-device", BODIES["/vm.remove-device"])

    assert answer.status_code == 204
    assert owner.commands == [commands.RemoveDevice("data")]


async def test_ping_says_which_program_answers(tmp_path: Path) -> None:
    async with serving(FakeOwner(), tmp_path) as api:
        answer = await api.ask("GET", "/vmm.ping")

    assert answer.status_code == 200
    assert answer.json() == ABOUT.to_json()


async def test_info_shows_what_the_owner_tells(tmp_path: Path) -> None:
    owner = FakeOwner()
    async with serving(owner, tmp_path) as api:
        answer = await api.ask("GET", "/vm.info")

    assert answer.status_code == 200
    assert answer.json() == owner.info().to_json()


async def test_counters_show_what_the_owner_counts(tmp_path: Path) -> None:
    async with serving(FakeOwner(), tmp_path) as api:
        answer = await api.ask("GET", "/vm.counters")

    assert answer.status_code == 200
    assert answer.json() == {"_disk0": {"read_bytes": 7}}


@pytest.mark.parametrize(("route", "kind"), DECLARED)
async def test_declared_error_gives_its_status_and_chain(
    route: Route, kind: type[VmmError], tmp_path: Path
) -> None:
    error = kind("This is why")
    error.__cause__ = OSError("and this below")
    async with serving(FakeOwner(error), tmp_path) as api:
        answer = await api.ask(route.method, route.path, body_for(route))

    assert answer.status_code == STATUSES[kind]
    assert answer.json() == ["Error from API", route.action, "This is why", "and this below"]
    assert answer.headers["Content-Type"] == "application/json"


async def test_state_error_allows_no_method_meanwhile(tmp_path: Path) -> None:
    async with serving(FakeOwner(StateError("VM is not running")), tmp_path) as api:
        answer = await api.ask("PUT", "/vm.pause")

    assert (answer.status_code, answer.headers["Allow"]) == (405, "")


@pytest.mark.parametrize(
    "error", [NO_DEVICE, SILENT_GUEST, PeerError("Gone"), InternalError("Ours")], ids=repr
)
@pytest.mark.parametrize("path", ["/vm.boot", "/vm.delete"])
async def test_fault_of_nobody_who_asks_gives_500(
    path: str, error: VmmError, tmp_path: Path
) -> None:
    async with serving(FakeOwner(error), tmp_path) as api:
        answer = await api.ask("PUT", path)

    assert answer.status_code == 500
    assert answer.json()[2:] == [str(error)]


async def test_undeclared_error_of_a_declared_kind_takes_the_status_of_its_kind(
    tmp_path: Path,
) -> None:
    async with serving(FakeOwner(NotCreatedError("VM is not created")), tmp_path) as api:
        answer = await api.ask("PUT", "/vm.delete")

    assert answer.status_code == 405


async def test_undeclared_error_gives_500(tmp_path: Path) -> None:
    async with serving(FakeOwner(ConfigError("No such value")), tmp_path) as api:
        answer = await api.ask("PUT", "/vm.pause")

    assert answer.status_code == 500


def test_routes_are_the_documented_ones_and_the_nmi_of_real_clients() -> None:
    looked_at = {route.path for route in ROUTES if route.method == "GET"}
    asked_for = {route.path for route in ROUTES if route.method == "PUT"}

    assert looked_at == {"/vmm.ping", "/vm.info", "/vm.counters", "/vm.migration"}
    assert asked_for == {*COMMANDS, *BODIES}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
async def test_wrong_method_gives_405_and_the_right_one(route: Route, tmp_path: Path) -> None:
    owner = FakeOwner()
    wrong = "PUT" if route.method == "GET" else "GET"
    async with serving(owner, tmp_path) as api:
        answer = await api.ask(wrong, route.path)

    assert answer.status_code == 405
    assert route.method in answer.headers["Allow"]
    assert answer.json()[0] == "Method Not Allowed"
    assert owner.commands == []


@pytest.mark.parametrize("path", ["/vm.nonsense", "/vm.boot/", "/", "", "//vm.boot", "/VM.BOOT"])
async def test_unknown_route_gives_404(path: str, tmp_path: Path) -> None:
    async with serving(FakeOwner(), tmp_path) as api:
        answer = await api.ask("PUT", path)

    assert (answer.status_code, answer.json()) == (404, ["Not Found"])


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        (b'{"payload":\n {"kernel" "x"}}', ["line 2 column 12"]),
        (b"\xff\xfe", ["not valid JSON"]),
        (b"[" * 100_000, ["not valid JSON"]),
        (b"[]", ["the body"]),
        (b'{"cpus": {"boot_vcpus": "two", "max_vcpus": 2}}', ["cpus.boot_vcpus", "two"]),
        (b'{"cpus": {}}', ["cpus.boot_vcpus", "cpus.max_vcpus"]),
    ],
    ids=["malformed", "not UTF-8", "bottomless", "no object", "wrong type", "missing fields"],
)
async def test_create_with_a_bad_body_gives_400_and_the_place(
    body: bytes, texts: list[str], tmp_path: Path
) -> None:
    owner = FakeOwner()
    async with serving(owner, tmp_path) as api:
        answer = await api.ask("PUT", "/vm.create", body)
        after = await api.ask("GET", "/vmm.ping")

    assert answer.status_code == 400
    assert answer.json()[0] == "Failed to deserialize JSON"
    assert all(text in " ".join(answer.json()) for text in texts), answer.json()
    assert (owner.commands, after.status_code) == ([], 200)


async def test_create_without_a_body_gives_400(tmp_path: Path) -> None:
    owner = FakeOwner()
    async with serving(owner, tmp_path) as api:
        answer = await api.ask("PUT", "/vm.create")

    assert answer.status_code == 400
    assert answer.json()[0] == "Bad Request"
    assert owner.commands == []


async def test_boot_with_a_body_gives_400(tmp_path: Path) -> None:
    owner = FakeOwner()
    async with serving(owner, tmp_path) as api:
        answer = await api.ask("PUT", "/vm.boot", b"{}")

    assert answer.status_code == 400
    assert answer.json() == ["Bad Request", "/vm.boot takes no body: send none"]
    assert owner.commands == []


async def test_create_with_the_largest_body_is_served(tmp_path: Path) -> None:
    owner = FakeOwner()
    async with serving(owner, tmp_path) as api:
        answer = await api.ask("PUT", "/vm.create", CONFIG.ljust(BODY_LIMIT))

    assert answer.status_code == 204
    assert len(owner.commands) == 1


async def test_create_with_a_body_too_large_gives_413_and_the_limit(tmp_path: Path) -> None:
    owner = FakeOwner()
    async with serving(owner, tmp_path) as api:
        answer = await api.ask("PUT", "/vm.create", CONFIG.ljust(BODY_LIMIT + 1))
        after = await api.ask("GET", "/vmm.ping")

    assert answer.status_code == 413
    assert str(BODY_LIMIT) in answer.json()[1]
    assert (owner.commands, after.status_code) == ([], 200)
