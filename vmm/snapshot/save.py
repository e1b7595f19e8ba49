"""Writing a snapshot of a VM that stands: its configuration, its state, and its RAM."""

from __future__ import annotations

import json
import logging
import os
import time
from typing import TYPE_CHECKING

from vmm.snapshot.files import CONFIG, MEMORY, STATE, new_files, write_text
from vmm.snapshot.memory_file import write_memory

if TYPE_CHECKING:
    from vmm.config.vm import VmConfig
    from vmm.machine.memory import GuestMemory
    from vmm.snapshot.state import MachineState

logger = logging.getLogger(__name__)


async def write_snapshot(
    folder: str, config: VmConfig, state: MachineState, memory: GuestMemory
) -> None:
    """Write a snapshot to an existing directory, whole or not at all.

    Raises: HostError when the directory is none, has one already, or cannot be written.
    """
    began = time.monotonic()
    with new_files(folder) as files:
        path = os.path.join(folder, MEMORY)
        written = await write_memory(files.memory, path, memory)
        text = json.dumps(config.to_json(), separators=(",", ":"))
        write_text(files.config, text, os.path.join(folder, CONFIG))
        write_text(files.state, state.to_json(), os.path.join(folder, STATE))
    logger.info(
        "A snapshot is in %s: %d of %d MiB of RAM are not zero, %.2f s",
        folder,
        written >> 20,
        memory.size >> 20,
        time.monotonic() - began,
    )
