"""``GenericVhostUserConfig``: any virtio device that a vhost-user back end implements.

The document calls two of its fields ``queue_size`` and ``virtio_id``, the original ``queue_sizes``
and ``device_type``: both are taken, and both are shown.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final

from pydantic import model_validator

from vmm.config.model import join_spellings
from vmm.config.pci import PciSlot
from vmm.config.tokens import dequote
from vmm.config.units import U16, U32, Array, HostPath, Text, parse_decimal
from vmm.config.values import Cli, Syntax

VIRTIO_DEVICE_TYPES: Final[Mapping[str, int]] = {
    "net": 1, "block": 2, "console": 3, "rng": 4, "balloon": 5, "iomem": 6, "rpmsg": 7,
    "scsi": 8, "9p": 9, "mac80211_wlan": 10, "rproc_serial": 11, "caif": 12,
    "memory_balloon": 13, "gpu": 16, "clock": 17, "input": 18, "vsock": 19, "crypto": 20,
    "signal_dist": 21, "pstore": 22, "iommu": 23, "mem": 24, "sound": 25, "fs": 26, "pmem": 27,
    "rpmb": 28, "mac80211_hwsim": 29, "video_encoder": 30, "video_decoder": 31, "scmi": 32,
    "nitro_sec_mod": 33, "i2c": 34, "watchdog": 35, "can": 36, "dmabuf": 37, "param_serv": 38,
    "audio_policy": 39, "bt": 40, "gpio": 41, "rdma": 42, "camera": 43, "ism": 44, "spi": 45,
    "tee": 46, "cpu_balloon": 47, "media": 48, "usb": 49,
}  # fmt: skip
"""Names of the virtio specification's device types (virtio 1.3, section 5)."""

REFUSED_TYPES: Final = ("iommu", "watchdog")
"""Devices that belong to the machine itself and cannot be served from outside."""


class _DeviceType:
    def parse(self, raw: str) -> int:
        text = dequote(raw)
        number = VIRTIO_DEVICE_TYPES.get(text)
        if number is not None:
            return number
        if text != "0" and text.startswith("0"):
            raise ValueError("give the number without a leading zero")
        try:
            return parse_decimal(text)
        except ValueError:
            raise ValueError("give the number or the name of a virtio device type") from None

    def format(self, value: object) -> str:
        return str(value)


def _device_type(_: type) -> Syntax:
    return _DeviceType()


class GenericVhostUserConfig(PciSlot):
    """A virtio device of any type, implemented by a vhost-user back end."""

    FLAG: ClassVar[str] = "--generic-vhost-user"
    SPELLINGS: ClassVar[Mapping[str, str]] = {
        "queue_size": "queue_sizes",
        "virtio_id": "device_type",
    }

    socket: HostPath
    queue_sizes: Array[U16]
    device_type: Annotated[U32, Cli(also=("virtio_id",), values=_device_type)]
    tag: Annotated[Text | None, Cli(hidden=True)] = None

    @model_validator(mode="before")
    @classmethod
    def _join_spellings(cls, given: object) -> object:
        return join_spellings(cls, given, may_repeat=True)

    def to_json(self) -> dict[str, object]:
        """Give what ``vm.info`` shows, under both spellings."""
        shown = super().to_json()
        return shown | {other: shown[name] for other, name in self.SPELLINGS.items()}
