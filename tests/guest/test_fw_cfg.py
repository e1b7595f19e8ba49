"""Linux finds the items of the firmware configuration device by their names."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.guest.conftest import booted
from tools.images.initramfs import initramfs
from tools.images.kernels import Kernel

pytestmark = pytest.mark.guest

ITEMS = "/sys/firmware/qemu_fw_cfg/by_name"


async def test_kernel_finds_files_and_texts_by_name(place: Path, linux: Kernel) -> None:
    file = place / "file"
    data = bytes(range(256)) * 2
    file.write_bytes(data)
    items = f"name=opt/org.test/file,file={file}:name=opt/org.test/text,string=hello"
    options = ("--fw-cfg-config", f"items=[{items}]")
    async with booted(place, linux, initramfs(linux, "virtio"), *options) as guest:
        assert await guest.run(f"cat {ITEMS}/opt/org.test/text/raw; echo") == "hello\n"
        copied = await guest.run(f"md5sum < {ITEMS}/opt/org.test/file/raw")
        assert copied.split()[0] == hashlib.md5(data, usedforsecurity=False).hexdigest()
        entries = await guest.run(f"wc -c < {ITEMS}/etc/e820/raw")
        assert int(entries) % 20 == 0
        tree = (await guest.vmm.info())["config"]["payload"]["fw_cfg_config"]
        assert [item["name"] for item in tree["items"]] == [
            "opt/org.test/file",
            "opt/org.test/text",
        ]
