"""A VM moves through TLS between sides that one authority vouches for, and between no others."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.kvm.guests.meddling import free_port
from tests.kvm.guests.moving import Host, two_hosts
from tests.kvm.guests.processes import SECONDS, short_folder
from vmm.boot.layout import RamRange
from vmm.client import ApiError
from vmm.config.info import VmState
from vmm.errors import PeerError
from vmm.kvm_cffi.pager import PagerState
from vmm.machine.memory import GuestMemory
from vmm.machine.zones import Zone
from vmm.migration.address import TcpAddress
from vmm.migration.destination import listen
from vmm.migration.postcopy import accept_faults, fetch_on_demand, serve_faults
from vmm.migration.protocol import Role, encode_role
from vmm.migration.tls import TlsLink, sender_context
from vmm.testing.memory import FakeMemory

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm")]

place = short_folder

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")


def openssl(*words: str | Path) -> None:
    command = ["openssl", *(str(word) for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def make_authority(folder: Path) -> Path:
    """A folder with all files of both sides, vouched for by an authority of their own."""
    folder.mkdir()
    ca, ca_key = folder / "ca-cert.pem", folder / "ca-key.pem"
    openssl("req", "-x509", *KEY, "-keyout", ca_key, "-out", ca, "-subj", "/CN=authority")
    for side in ("server", "client"):
        key, wish, cert = (folder / f"{side}-{name}.pem" for name in ("key", "wish", "cert"))
        openssl("req", *KEY[:-2], "-keyout", key, "-out", wish, "-subj", f"/CN={side}")
        extra = folder / f"{side}.ext"
        extra.write_text("subjectAltName=IP:127.0.0.1\n")
        openssl(
            *("x509", "-req", "-in", wish, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial"),
            *("-out", cert, "-days", "2", "-extfile", extra),
        )
    return folder


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_authority(tmp_path_factory.mktemp("tls") / "foreign")


def mixed(folder: Path, ca: Path, own: Path) -> Path:
    """A folder that believes one authority and shows the certificates of another."""
    shutil.copytree(own, folder)
    shutil.copy(ca / "ca-cert.pem", folder / "ca-cert.pem")
    return folder


async def refused(
    one: Host, other: Host, *, sender: Path | None, receiver: Path | None
) -> tuple[str, str]:
    """Try to move a VM; what each side was answered."""
    url = f"tcp:127.0.0.1:{free_port()}"
    answers = []

    async def receive(*, task_status: trio.TaskStatus[None]) -> None:
        folder = None if receiver is None else str(receiver)
        answers.append(await other.refused_receive(url, tls_dir=folder, task_status=task_status))

    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(receive)
            folder = None if sender is None else str(sender)
            sent = await one.refused_send(url, tls_dir=folder)
    return sent, answers[0]


@pytest.mark.parametrize("connections", [1, 4])
async def test_guest_moves_through_tls(place: Path, ours: Path, connections: int) -> None:
    url = f"tcp:127.0.0.1:{free_port()}"
    async with two_hosts(place) as (one, other):
        await one.boot(place)
        await one.rounds(3)
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(other.receive, url, tls_dir=str(ours)))
                await one.send(url, tls_dir=str(ours), connections=connections)

        await other.rounds(5)
        assert (await other.client.info()).state is VmState.RUNNING


async def test_guest_moves_through_tls_before_its_memory_which_follows(
    place: Path, ours: Path
) -> None:
    url = f"tcp:127.0.0.1:{free_port()}"
    how: dict[str, Any] = {"tls_dir": str(ours), "memory_mode": "Postcopy"}
    async with two_hosts(place) as (one, other):
        await one.boot(place)
        await one.rounds(3)
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(other.receive, url, **how))
                await one.send(url, **how)

        await other.rounds(5)
        assert (await other.client.info()).state is VmState.RUNNING
        with trio.fail_after(SECONDS):
            assert await one.vmm.process.wait() == 0
        assert "vm:postcopy-migration-completed" in one.vmm.events()
        assert children_of(other.vmm.process.pid) == []


def children_of(pid: int) -> list[str]:
    """The processes that a process has started, in any thread, and that are there still."""
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [child for file in files for child in file.read_text().split()]


@pytest.fixture
def started() -> Callable[[], list[str]]:
    """Gives the children that this process has and did not have before the test."""
    before = children_of(os.getpid())
    return lambda: [child for child in children_of(os.getpid()) if child not in before]


def has_ended(child: str) -> bool:
    """Whether a child waits for nothing any more but to be waited for."""
    return Path(f"/proc/{child}/stat").read_text().rpartition(") ")[2].startswith("Z")


SIZE = 8 << 20
PAGE = 4096


async def keep_memory(port: int, folder: Path, source: FakeMemory) -> None:
    """Be a source whose VM has gone before its memory."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    link = await TlsLink.open(stream.socket, sender_context(str(folder)), server_name="127.0.0.1")
    await link.send(encode_role(Role.FAULT))
    await serve_faults(link, source.map(), lambda _: None)
    link.close()


async def test_loop_that_touches_a_page_itself_gets_it_through_tls(
    ours: Path, started: Callable[[], list[str]]
) -> None:
    source = FakeMemory((0, SIZE))
    source.write(0, random.Random(9).randbytes(SIZE))
    address = TcpAddress("127.0.0.1", free_port())
    with trio.fail_after(SECONDS):
        async with listen(address, str(ours)) as listener, trio.open_nursery() as nursery:
            keep = partial(trio.run, keep_memory, address.port, ours, source)
            nursery.start_soon(trio.to_thread.run_sync, keep)
            connection = await accept_faults(listener)
            zone = Zone("ram", SIZE, thp=False)
            with GuestMemory.open([zone], [RamRange(0, SIZE)]) as memory:
                fetch_on_demand(connection, memory)
                assert len(started()) == 1
                # In the loop's thread, which waits in the kernel until the page has come.
                assert touched(memory, SIZE - PAGE) == source.read(SIZE - PAGE, PAGE)
                assert memory.pager is not None
                await trio.lowlevel.wait_readable(memory.pager.event_fd)
                assert memory.pager.progress.state is PagerState.DONE
                assert memory.read(0, SIZE) == source.read(0, SIZE)
                memory.pager.close()
    assert started() == []


def touched(memory: GuestMemory, at: int) -> bytes:
    """A page, touched by the kernel: it holds no interpreter's lock, which the source needs."""
    fd = os.memfd_create("touched")
    try:
        with memory.regions[0].view[at : at + PAGE] as page:
            assert os.pwrite(fd, page, 0) == PAGE
        return os.pread(fd, PAGE, 0)
    finally:
        os.close(fd)


async def test_stranger_cannot_bring_memory_through_tls_and_keeps_nobody_from_it(
    ours: Path, foreign: Path, started: Callable[[], list[str]]
) -> None:
    address = TcpAddress("127.0.0.1", free_port())

    async def come() -> None:
        await present(address.port, foreign)
        await keep_memory(address.port, ours, FakeMemory((0, SIZE)))

    with trio.fail_after(SECONDS):
        async with listen(address, str(ours)) as listener, trio.open_nursery() as nursery:
            nursery.start_soon(come)
            with await accept_faults(listener):
                assert len(started()) == 1
    assert started() == []


async def test_process_for_tls_ends_with_the_vmm_that_started_it(
    ours: Path, started: Callable[[], list[str]]
) -> None:
    address = TcpAddress("127.0.0.1", free_port())
    with trio.fail_after(SECONDS):
        async with listen(address, str(ours)) as listener, trio.open_nursery() as nursery:
            keep = partial(keep_memory, address.port, ours, FakeMemory((0, SIZE)))
            nursery.start_soon(keep)
            with await accept_faults(listener) as connection:
                [child] = started()
                os.close(connection.fd)  # As when the VMM is killed.
                connection.fd = -1
                while not has_ended(child):  # noqa: ASYNC110  nobody else tells
                    await trio.sleep(0.01)


async def present(port: int, folder: Path) -> None:
    """Show a certificate that nobody here vouches for."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    with pytest.raises(PeerError):
        await TlsLink.open(stream.socket, sender_context(str(folder)), server_name="127.0.0.1")


async def test_sides_that_do_not_know_each_other_move_nothing(
    place: Path, ours: Path, foreign: Path, tmp_path: Path
) -> None:
    stranger = mixed(tmp_path / "stranger", ours, foreign)
    async with two_hosts(place) as (one, other):
        await one.boot(place)
        await one.rounds(2)

        sent, _ = await refused(one, other, sender=foreign, receiver=ours)
        assert "certificate verify failed" in sent
        sent, received = await refused(one, other, sender=stranger, receiver=ours)
        assert "certificate verify failed" in received
        sent, received = await refused(one, other, sender=None, receiver=ours)
        assert "agree on TLS" in received
        sent, received = await refused(one, other, sender=ours, receiver=None)
        assert "agree on TLS" in sent

        assert (await one.client.info()).state is VmState.RUNNING
        await one.rounds(2)
        with pytest.raises(ApiError) as caught:
            await other.client.info()
        assert caught.value.status == 404
