"""A client of QEMU's monitor protocol (QMP), as far as saving and restoring needs it."""

from __future__ import annotations

import json
from typing import Any

import trio

from tools.nested_host.errors import NestedHostError

CHUNK_BYTES = 1 << 16


class Monitor:
    """One QMP connection; one task uses it."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def greet(self) -> None:
        """Read the greeting and leave the negotiation mode."""
        await self._receive()
        await self.execute("qmp_capabilities")

    async def execute(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 - JSON
        """Run one command and return its result. Raises NestedHostError: QEMU refused it."""
        message = {"execute": command, "arguments": arguments}
        await self._stream.send_all(json.dumps(message).encode() + b"\n")
        while True:
            answer = await self._receive()
            if "error" in answer:
                raise NestedHostError(f"QEMU refused {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    async def save(self, path: str) -> None:
        """Stop the machine and write its state, only the memory in use, to a file."""
        await self.execute("stop")
        await self._prepare_migration()
        await self.execute("migrate", uri=f"file:{path}")
        await self._finish_migration("saving")

    async def restore(self, path: str) -> None:
        """Load the state of a machine that was started with `-incoming defer`."""
        await self._prepare_migration()
        await self.execute("migrate-incoming", uri=f"file:{path}")
        await self._finish_migration("restoring")

    async def _prepare_migration(self) -> None:
        capabilities = [{"capability": name, "state": True} for name in ("mapped-ram", "events")]
        await self.execute("migrate-set-capabilities", capabilities=capabilities)
        await self.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 34})

    async def _finish_migration(self, doing: str) -> None:
        while True:
            message = await self._receive()
            if message.get("event") != "MIGRATION":
                continue
            status = message["data"]["status"]
            if status == "completed":
                return
            if status == "failed":
                reason = (await self.execute("query-migrate")).get("error-desc", "no reason given")
                raise NestedHostError(f"QEMU failed at {doing} the state: {reason}")

    async def _receive(self) -> Any:  # noqa: ANN401 - JSON
        while b"\n" not in self._buffer:
            data = await self._stream.receive_some(CHUNK_BYTES)
            if not data:
                raise NestedHostError("QEMU closed its monitor.")
            self._buffer += data
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer[:] = rest
        return json.loads(line)
