"""The files that a side shows itself by: what is no good is refused, and nobody is asked."""

from __future__ import annotations

import fcntl
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

READ_FILES = """
import sys
from vmm.errors import ConfigError
from vmm.migration.tls import sender_context
try:
    sender_context(sys.argv[1])
except ConfigError as error:
    print(error)
"""


def make_files(folder: Path) -> None:
    """A client's certificate and its key, which needs a phrase."""
    for name in ("ca", "client"):
        done = subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"),
                *("ec_paramgen_curve:prime256v1", "-passout", "pass:phrase", "-subj", "/CN=one"),
                *("-keyout", str(folder / f"{name}-key.pem")),
                *("-out", str(folder / f"{name}-cert.pem")),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_key_that_needs_a_phrase_is_refused_and_no_terminal_is_asked_for_it(
    tmp_path: Path,
) -> None:
    make_files(tmp_path)
    master, slave = pty.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    try:
        done = subprocess.run(
            [sys.executable, "-c", READ_FILES, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
            preexec_fn=take_terminal,
        )
    finally:
        os.close(master)
        os.close(slave)
    assert "has files that cannot be used" in done.stdout
