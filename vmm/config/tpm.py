"""``TpmConfig``: a TPM that swtpm emulates."""

from typing import ClassVar

from vmm.config.model import ConfigModel
from vmm.config.units import HostPath


class TpmConfig(ConfigModel):
    """A TPM, emulated behind a socket."""

    FLAG: ClassVar[str] = "--tpm"

    socket: HostPath
