"""``PayloadConfig``: what the guest starts from."""

from vmm.config.model import ConfigModel
from vmm.config.units import HostPath, Text


class PayloadConfig(ConfigModel):
    """What the guest starts from; on the command line each field is an option of its own."""

    firmware: HostPath | None = None
    kernel: HostPath | None = None
    cmdline: Text | None = None
    initramfs: HostPath | None = None
    igvm: HostPath | None = None
    host_data: Text | None = None
