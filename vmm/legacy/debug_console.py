"""The debug console: a port whose bytes go to a console as they are, 0xE9 unless configured.

C keeps the bytes in a ring, in the vCPU's thread. A read gives all ones, as from a port that is
not there.
"""

from __future__ import annotations

from vmm.legacy.output import OutputPort

PORT = 0xE9
READ_VALUE = 0xFF


class DebugConsole(OutputPort):
    """The port with the back end that the configuration chose."""
