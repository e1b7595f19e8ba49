"""The reference VMM: QEMU's command lines, and its monitor protocol.

Spec: QEMU Machine Protocol.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from tools.bench.connection import Connection
from tools.bench.guests import POWER_OFF_CODE, POWER_OFF_PORT
from tools.images.qemu import emulator

PROGRAM = "qemu-system-x86_64"

EXIT_CODE = POWER_OFF_CODE << 1 | 1
"""How QEMU ends when a guest writes the power-off code to its debug exit device."""


def newer_program() -> tuple[str, ...]:
    """The QEMU of Debian's backports, which can do what Debian 12's cannot. Raises: ImageError."""
    newer = emulator()
    environment = (f"{name}={value}" for name, value in newer.environment.items())
    return ("env", *environment, *newer.command)


def command(
    *arguments: str, machine: str = "microvm", program: tuple[str, ...] = (PROGRAM,)
) -> tuple[str, ...]:
    """A QEMU with 512 MiB, one vCPU, the debug port on stdout and nothing that is not needed.

    The feature that is turned off is one that some hosts' KVM reports and then refuses to set.
    """
    return (
        *program,
        *("-machine", f"{machine},accel=kvm"),
        *("-cpu", "host,arch-capabilities=off"),
        *("-m", "512"),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-debugcon", "stdio"),
        *("-device", f"isa-debug-exit,iobase={POWER_OFF_PORT:#x},iosize=1"),
        *arguments,
    )


def with_monitor(socket: Path) -> tuple[str, ...]:
    """The arguments that make QEMU serve its monitor on a unix socket."""
    return ("-qmp", f"unix:{socket},server=on,wait=off")


def greet(connection: Connection) -> None:
    """Get past the monitor's greeting and agree on no capabilities."""
    connection.line()
    execute(connection, "qmp_capabilities")


def execute(connection: Connection, name: str, **arguments: object) -> dict[str, object]:
    """Send one command and give what it returns. Raises: BenchError when it is an error."""
    command = {"execute": name} | ({"arguments": arguments} if arguments else {})
    connection.send(json.dumps(command).encode() + b"\n")
    while True:
        reply = json.loads(connection.line())
        if "event" not in reply:
            connection.expect("return" in reply, f"answered {name} with {reply}")
            returned: dict[str, object] = reply["return"]
            return returned


def enable(connection: Connection, *capabilities: str) -> None:
    """Have QEMU migrate in a way that it does not by itself."""
    wanted = [{"capability": name, "state": True} for name in capabilities]
    execute(connection, "migrate-set-capabilities", capabilities=wanted)


def migrated(connection: Connection, name: str, uri: str) -> float:
    """Have QEMU migrate and wait until it has; the ms that took."""
    start = time.perf_counter()
    if name == "migrate":
        execute(connection, "migrate-set-parameters", **{"max-bandwidth": 1 << 40})
    execute(connection, name, uri=uri)
    while True:
        status = execute(connection, "query-migrate").get("status")
        connection.expect(status != "failed", "failed to migrate")
        if status == "completed":
            return (time.perf_counter() - start) * 1000
        time.sleep(0.002)
