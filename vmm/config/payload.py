"""``PayloadConfig``: what the guest starts from."""

from typing import TYPE_CHECKING, Annotated

from vmm.config.model import ConfigModel, LaterModel
from vmm.config.units import HostPath, Text
from vmm.config.values import Cli

if TYPE_CHECKING:
    from vmm.config.fw_cfg import FwCfgConfig
else:
    FwCfgConfig = LaterModel("fw_cfg", "FwCfgConfig", "--fw-cfg-config")


class PayloadConfig(ConfigModel):
    """What the guest starts from; on the command line each field is an option of its own."""

    firmware: Annotated[HostPath | None, Cli(caption="The firmware to boot")] = None
    kernel: Annotated[HostPath | None, Cli(caption="The kernel to boot: ELF or bzImage")] = None
    cmdline: Annotated[Text | None, Cli(caption="The kernel's command line")] = None
    initramfs: Annotated[HostPath | None, Cli(caption="The kernel's initial file system")] = None
    igvm: Annotated[HostPath | None, Cli(caption="The IGVM image to boot")] = None
    host_data: Annotated[Text | None, Cli(caption="64 hexadecimal digits for attestation")] = None
    fw_cfg_config: Annotated[FwCfgConfig | None, Cli(caption="What the guest finds in fw_cfg")] = (
        None
    )
