"""``python -m tools.images``: make guest images and print their paths."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from tools.images.cache import ImageError
from tools.images.firmware import cloudhv
from tools.images.initramfs import VARIANTS, initramfs
from tools.images.kernels import RELEASES, Kernel, kernel
from tools.images.qemu import emulator
from tools.images.rootdisk import root_disk
from tools.images.vsock import vsock_initramfs

# What the tests and the demonstration boot.
_ALL_KERNELS = ("6.1-cloud", "6.12-cloud", "7-cloud")


def main() -> int:
    """Make what the command line names; exit code 1 and one sentence when that fails."""
    args = _parser().parse_args()
    try:
        for path in _make(args):
            print(path)
    except ImageError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.images", description=__doc__)
    parser.add_argument(
        "--newest", action="store_true", help="look for newer packages than the cache has"
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    for name in ("kernel", "initramfs"):
        one = kinds.add_parser(name)
        one.add_argument("release", choices=RELEASES)
    kinds.choices["kernel"].add_argument(
        "--vmlinux", action="store_true", help="print the ELF kernel, not the bzImage"
    )
    kinds.choices["initramfs"].add_argument("--variant", choices=VARIANTS, default="minimal")
    kinds.add_parser("firmware")
    kinds.add_parser("qemu")
    kinds.add_parser("root-disk", help="Debian 12 on a raw disk; guests boot copies of it")
    kinds.add_parser("all", help="everything the tests and the demonstration need")
    return parser


def _make(args: argparse.Namespace) -> list[Path]:
    if args.kind == "firmware":
        return [cloudhv(newest=args.newest)]
    if args.kind == "qemu":
        print(shlex.join(emulator(newest=args.newest).command))
        return []
    if args.kind == "root-disk":
        return [root_disk()]
    if args.kind == "all":
        kernels = [kernel(release, newest=args.newest) for release in _ALL_KERNELS]
        images = [path for each in kernels for path in _kernel_and_initramfs(each)]
        emulator(newest=args.newest)
        images += [vsock_initramfs(each) for each in kernels]
        return [*images, cloudhv(newest=args.newest), root_disk()]
    one = kernel(args.release, newest=args.newest)
    if args.kind == "initramfs":
        return [initramfs(one, args.variant)]
    return [one.vmlinux if args.vmlinux else one.vmlinuz]


def _kernel_and_initramfs(one: Kernel) -> list[Path]:
    return [one.vmlinuz, one.vmlinux, *(initramfs(one, variant) for variant in VARIANTS)]


if __name__ == "__main__":
    sys.exit(main())
