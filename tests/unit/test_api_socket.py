"""The listening socket: created, guarded, adopted, and gone afterwards."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm.api.socket import PATH_LIMIT, open_api_socket
from vmm.errors import HostError

PERMISSIVE = 0


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "api.sock")


@pytest.fixture
def permissive_umask() -> Iterator[None]:
    before = os.umask(PERMISSIVE)
    yield
    os.umask(before)


@pytest.fixture
def other_instance(path: str) -> Iterator[None]:
    code = (
        "import sys; from vmm.api.socket import open_api_socket\n"
        "with open_api_socket(sys.argv[1]): print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        yield
        process.communicate(timeout=10)


def leave_stale_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)


def mode_of(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_path_accepts_clients(path: str) -> None:
    with open_api_socket(path) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        accepted, _ = listener.accept()
        accepted.close()


@pytest.mark.usefixtures("permissive_umask")
def test_path_is_only_for_its_owner_whatever_the_umask(path: str) -> None:
    with open_api_socket(path):
        modes = mode_of(path), mode_of(f"{path}.lock")

    assert modes == (0o600, 0o600)


def test_path_and_lock_are_gone_afterwards(path: str, tmp_path: Path) -> None:
    with open_api_socket(path) as listener:
        names = set(os.listdir(tmp_path))

    assert names == {"api.sock", "api.sock.lock"}
    assert (os.listdir(tmp_path), listener.fileno()) == ([], -1)


def test_path_and_lock_are_gone_after_an_error(path: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_api_socket(path):
        raise KeyboardInterrupt

    assert os.listdir(tmp_path) == []


def test_stale_socket_is_replaced(path: str) -> None:
    leave_stale_socket(path)

    with open_api_socket(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


@pytest.mark.usefixtures("other_instance")
def test_second_instance_is_refused_and_the_first_keeps_its_socket(path: str) -> None:
    with pytest.raises(HostError, match="already in use by another running instance") as caught:
        open_api_socket(path).__enter__()

    assert path in str(caught.value)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_second_instance_in_the_same_process_is_refused(path: str) -> None:
    with open_api_socket(path), pytest.raises(HostError, match="already in use"):
        open_api_socket(path).__enter__()


def test_path_can_be_opened_again_after_its_end(path: str) -> None:
    for _ in range(2):
        with open_api_socket(path):
            pass


def test_socket_that_took_our_place_is_left(path: str) -> None:
    with open_api_socket(path):
        os.unlink(path)
        leave_stale_socket(path)

    assert stat.S_ISSOCK(os.stat(path).st_mode)


def test_file_that_is_no_socket_is_left_and_refused(path: str, tmp_path: Path) -> None:
    Path(path).write_text("precious")

    with pytest.raises(HostError, match="not a socket"):
        open_api_socket(path).__enter__()

    assert Path(path).read_text() == "precious"
    assert os.listdir(tmp_path) == ["api.sock"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "empty"),
        ("x" * (PATH_LIMIT + 1), f"{PATH_LIMIT + 1} bytes"),
        ("/nonexistent/folder/api.sock", "/nonexistent/folder"),
    ],
    ids=["empty", "too long", "no folder"],
)
def test_unusable_path_is_refused_by_its_reason(name: str, text: str) -> None:
    with pytest.raises(HostError, match=text):
        open_api_socket(name).__enter__()


def test_inherited_descriptor_is_served_and_its_path_left(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as made_elsewhere:
        made_elsewhere.bind(path)
        made_elsewhere.listen()
        fd = os.dup(made_elsewhere.fileno())
        os.set_inheritable(fd, True)
        with open_api_socket(fd) as listener:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
            is_inheritable = listener.get_inheritable()

    assert (is_inheritable, listener.fileno()) == (False, -1)
    assert os.path.exists(path)
    assert not os.path.exists(f"{path}.lock")


def test_descriptor_that_is_not_open_is_refused() -> None:
    with pytest.raises(HostError, match="descriptor 999999"):
        open_api_socket(999_999).__enter__()


@pytest.mark.parametrize("fd", [-1, 1 << 40])
def test_number_that_is_no_descriptor_is_refused(fd: int) -> None:
    with pytest.raises(HostError, match="descriptor"):
        open_api_socket(fd).__enter__()


def test_descriptor_that_is_no_socket_is_refused_and_left_open() -> None:
    reader, writer = os.pipe()

    with pytest.raises(HostError, match=f"descriptor {reader}"):
        open_api_socket(reader).__enter__()

    os.close(reader)
    os.close(writer)


def test_descriptor_that_does_not_listen_is_refused_and_left_open() -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        with pytest.raises(HostError, match="listens"):
            open_api_socket(deaf.fileno()).__enter__()

        assert os.fstat(deaf.fileno())


def test_module_imports_no_api_stack() -> None:
    code = (
        "import sys, vmm.api.socket; print({'trio', 'quart', 'hypercorn', 'pydantic'} & "
        "set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"
