"""Start the VMM: ``python -m vmm`` and the console script ``vmm``."""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
from contextlib import suppress

from vmm.deferred import defer

UNUSED = (
    *("hmac", "idna", "json", "secrets", "shutil", "ssl", "tempfile", "tokenize"),
    "importlib.metadata:entry_points",
    "trio._dtls:DTLSChannel,DTLSChannelStatistics,DTLSEndpoint",
    "urllib.parse:quote_from_bytes",
    "zoneinfo:ZoneInfo,ZoneInfoNotFoundError",
)
"""What is imported, mostly by Trio and pydantic, and not used until a VM runs, if ever."""

LAST_STANDARD_STREAM = 2
PRIVATE_UMASK = 0o077
"""What this process creates is its user's alone: sockets, logs, console files."""


def main() -> int:
    """Run one VMM with the arguments of the command line and return its exit code."""
    # Imports make no garbage, and to look for it takes a tenth of the start. The loop turns the
    # collector on again once it runs.
    gc.disable()
    defer(*UNUSED)
    # Spares pydantic a search through all installed packages for plug-ins that we have not.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    os.umask(PRIVATE_UMASK)
    _guard_standard_streams()
    _raise_descriptor_limit()
    # A VM outlives the terminal it was started from; what it prints there is dropped then.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return _run(sys.argv[1:])


def _run(arguments: list[str]) -> int:
    from functools import partial

    import trio

    from vmm.cli import format_error_chain, parse
    from vmm.errors import VmmError
    from vmm.log import set_up_log

    try:
        invocation = parse(arguments)
        with set_up_log(invocation.verbosity, invocation.log_file, invocation.log_format):
            from vmm.loop import hold_signals, run_vmm
            from vmm.seccomp import filter_system_calls

            filter_system_calls(invocation.seccomp)
            with hold_signals():
                return trio.run(partial(run_vmm, invocation))
    except VmmError as error:
        print(format_error_chain(error), file=sys.stderr)
        return 1


def _guard_standard_streams() -> None:
    """Give descriptors 0 to 2 something to lead to: a file opened later must not become one."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= LAST_STANDARD_STREAM:
        os.set_inheritable(fd, True)
    os.close(fd)


def _raise_descriptor_limit() -> None:
    """Allow as many descriptors as the user may have: what shells give is less than a VM may need.

    They start programs with 1024, for the sake of select(2), which nothing here uses.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # The host's own limit may be below it by now.
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    sys.exit(main())
