"""The firmware's debug port, 0x402: UEFI firmware writes its log there and we print it.

C keeps the bytes in a ring, in the vCPU's thread. Firmware looks for the port by reading 0xE9 from
it, and stays silent otherwise.
"""

from __future__ import annotations

from vmm.legacy.output import OutputPort

PORT = 0x402
READ_VALUE = 0xE9


class FwDebug(OutputPort):
    """The port with its back end, which is standard output."""
