"""``DiskConfig``: a virtio block device, its image and its queues."""

from enum import StrEnum
from typing import Annotated, ClassVar

from vmm.config.model import ConfigModel
from vmm.config.pci import PciDevice
from vmm.config.rate_limit import BucketKeys, RateLimiterConfig
from vmm.config.units import U16, U64, Array, Choice, HostPath, Text
from vmm.config.values import Cli, Syntax, Words


class ImageType(StrEnum):
    """The format of a disk image."""

    FIXED_VHD = "FixedVhd"
    FLAT_VMDK = "FlatVmdk"
    QCOW2 = "Qcow2"
    RAW = "Raw"
    VHDX = "Vhdx"
    UNKNOWN = "Unknown"


class LockGranularity(StrEnum):
    """How a disk image is locked against other users."""

    BYTE_RANGE = "ByteRange"
    FULL = "Full"


class VirtQueueAffinity(ConfigModel):
    """The host CPUs that serve one queue."""

    queue_index: U16
    host_cpus: Array[U64]


def _image_words(_: type) -> Syntax:
    # Not Unknown: leaving the key out asks for detection.
    return Words(
        {
            "raw": ImageType.RAW,
            "qcow2": ImageType.QCOW2,
            "vhd": ImageType.FIXED_VHD,
            "vhdx": ImageType.VHDX,
            "vmdk": ImageType.FLAT_VMDK,
        }
    )


class DiskConfig(PciDevice):
    """A disk: an image of the host, or a vhost-user back end."""

    FLAG: ClassVar[str] = "--disk"

    path: HostPath | None = None
    readonly: bool = False
    direct: bool = False
    num_queues: U64 = 1
    queue_size: U16 = 128
    vhost_user: bool = False
    vhost_socket: Annotated[HostPath | None, Cli("socket")] = None
    rate_limiter_config: Annotated[RateLimiterConfig | None, Cli(keys=BucketKeys)] = None
    serial: Text | None = None
    rate_limit_group: Text | None = None
    queue_affinity: Array[VirtQueueAffinity] | None = None
    backing_files: bool = False
    sparse: bool = True
    image_type: Annotated[Choice[ImageType], Cli(values=_image_words)] = ImageType.UNKNOWN
    lock_granularity: Choice[LockGranularity] = LockGranularity.BYTE_RANGE
    disable_io_uring: Annotated[bool, Cli("_disable_io_uring")] = False
    disable_aio: Annotated[bool, Cli("_disable_aio")] = False
