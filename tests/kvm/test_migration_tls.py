"""A VM moves through TLS between sides that one authority vouches for, and between no others."""

from __future__ import annotations

import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.kvm.guests.meddling import free_port
from tests.kvm.guests.moving import Host, two_hosts
from tests.kvm.guests.processes import SECONDS, short_folder
from vmm.client import ApiError
from vmm.config.info import VmState

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
