"""What a fork of the warm interpreter does to become the command it was forked for."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import io
import os
import resource
import runpy
import signal
import sys
import termios
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple

WARM: Final = "/opt/venv/bin/python"
COLD: Final = "/opt/venv/bin/python3.11"
NAMESPACES: Final = {"net": 0x40000000, "mnt": 0x00020000, "uts": 0x04000000, "ipc": 0x08000000}
LIMITS: Final = tuple(
    getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")
)


@dataclass(frozen=True)
class Command:
    """A command, and everything about the process it stands for that a child would inherit."""

    argv: list[str]
    cwd: str
    environment: dict[str, str]
    fds: list[int]
    received_fds: list[int]
    umask: int
    pid: int
    is_terminal: bool


class PythonCall(NamedTuple):
    """A Python command line that a fork can serve: its kind, its subject, and what follows."""

    kind: str  # "-m", "-c" or "" for a script
    subject: str
    arguments: list[str]
    is_unbuffered: bool


def parse_python(argv: list[str]) -> PythonCall | None:
    """Return what a Python command line runs; None when it needs an interpreter of its own."""
    name = os.path.basename(argv[0])
    if name in ("pytest", "py.test"):
        return PythonCall("-m", "pytest", argv[1:], False)
    if name not in ("python", "python3", "python3.11"):
        return None
    rest = argv[1:]
    is_unbuffered = False
    while rest and rest[0] in ("-u", "-B"):
        is_unbuffered |= rest.pop(0) == "-u"
    if len(rest) >= 2 and rest[0] in ("-m", "-c"):
        return PythonCall(rest[0], rest[1], rest[2:], is_unbuffered)
    if rest and not rest[0].startswith("-"):
        return PythonCall("", rest[0], rest[1:], is_unbuffered)
    return None


def become(command: Command) -> None:
    """Take over the descriptors, environment, directory, limits and namespaces of the command."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    place_fds(command.received_fds, command.fds)
    if command.is_terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    for limit in LIMITS:
        with contextlib.suppress(ProcessLookupError):
            resource.setrlimit(limit, resource.prlimit(command.pid, limit))
    with contextlib.suppress(FileNotFoundError):
        enter_surroundings(command.pid)
    os.environ.clear()
    os.environ.update(command.environment)
    os.umask(command.umask)
    os.chdir(command.cwd)


def place_fds(received: list[int], wanted: list[int]) -> None:
    """Put each received descriptor at the number it had, and close all others."""
    floor = max([2, *wanted, *received]) + 1
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, floor) for fd in received]
    os.closerange(0, floor)
    for fd, number in zip(high, wanted, strict=True):
        os.dup2(fd, number, inheritable=True)
    os.closerange(floor, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def enter_surroundings(pid: int) -> None:
    """Join the namespaces and the control group of a process."""
    cgroup = Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::")
    if cgroup != "/":
        Path(f"/sys/fs/cgroup{cgroup}/cgroup.procs").write_text(str(os.getpid()))
    flags = 0
    for name, flag in NAMESPACES.items():
        if os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"):
            flags |= flag
    if flags:
        pidfd = os.pidfd_open(pid)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(pidfd, flags):
            raise OSError(ctypes.get_errno(), "setns failed")
        os.close(pidfd)


def run(command: Command) -> None:
    """Run the command; does not return."""
    call = parse_python(command.argv)
    if call is None:
        exec_command(command)
    else:
        open_streams(call.is_unbuffered or "PYTHONUNBUFFERED" in command.environment)
        leave(run_to_exit_code(lambda: run_python(call, command)))


def exec_command(command: Command) -> None:
    """Replace this process by the command's program, as a shell would."""
    argv = command.argv
    if os.path.basename(argv[0]).startswith("python"):
        argv = [COLD, *argv[1:]]
    try:
        os.execvpe(argv[0], argv, command.environment)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def open_streams(is_unbuffered: bool) -> None:
    """Give Python its standard streams as at start-up: line buffered on a terminal."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            raw = io.FileIO(fd, "r" if fd == 0 else "w", closefd=False)
        except OSError:  # the command has no such stream
            stream = None
        else:
            stream = io.TextIOWrapper(
                io.BufferedReader(raw) if fd == 0 else io.BufferedWriter(raw),
                encoding="utf-8",
                errors="backslashreplace" if fd == 2 else "strict",
                line_buffering=fd == 2 or raw.isatty(),
                write_through=is_unbuffered,
            )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def run_python(call: PythonCall, command: Command) -> None:
    """Do what the interpreter does with `-m`, `-c` or a script."""
    sys.executable = WARM
    sys.orig_argv[:] = [WARM, *command.argv[1:]]
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in command.environment
    sys.pycache_prefix = command.environment.get("PYTHONPYCACHEPREFIX")
    first = os.path.dirname(os.path.realpath(call.subject)) if not call.kind else command.cwd
    added = [path for path in command.environment.get("PYTHONPATH", "").split(":") if path]
    sys.path[:] = [first, *added, *(path for path in sys.path if path)]
    if call.kind == "-m":
        sys.argv[:] = ["-m", *call.arguments]
        runpy.run_module(call.subject, run_name="__main__", alter_sys=True)
    elif call.kind == "-c":
        sys.argv[:] = ["-c", *call.arguments]
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(call.subject, "<string>", "exec"), main.__dict__)
    else:
        sys.argv[:] = [call.subject, *call.arguments]
        runpy.run_path(call.subject, run_name="__main__")


def run_to_exit_code(body: Callable[[], None]) -> int:
    """Run Python code and return the exit code an interpreter would give."""
    try:
        body()
    except SystemExit as error:
        if error.code is None:
            return 0
        if isinstance(error.code, int):
            return error.code & 0xFF
        print(error.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT
    except BaseException as error:
        traceback = error.__traceback__
        while traceback is not None and is_ours(traceback.tb_frame.f_code.co_filename):
            traceback = traceback.tb_next
        sys.excepthook(type(error), error.with_traceback(traceback), traceback)
        return 1
    return 0


def is_ours(filename: str) -> bool:
    """Tell whether a frame belongs to this launcher and not to the command."""
    return filename == __file__ or filename == "<frozen runpy>" or filename.endswith("/runpy.py")


def leave(code: int) -> None:
    """End as an interpreter ends, without taking the warm modules apart one by one."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as multiprocessing does
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)
