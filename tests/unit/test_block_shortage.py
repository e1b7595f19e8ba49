"""A host that is short of something for a moment: what a disk was to do is done a little later.

A process of its own has a library before the C library, by which the kernel seems to be so.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REQUESTS = 8

SHORT_KERNEL = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/syscall.h>

long syscall(long number, ...)
{
    static int calls;
    long arguments[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        arguments[i] = va_arg(list, long);
    va_end(list);
    long (*real)(long, ...) = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    if (number == SYS_io_uring_enter && calls++ < 3) {
        int refusal = atoi(getenv("REFUSAL"));
        if (refusal != 0) {
            errno = refusal;
            return -1;
        }
        if (arguments[1] > 1)
            arguments[1] = 1; /* of what was to be submitted it takes one */
    }
    return real(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4],
                arguments[5]);
}
"""

PROGRAM = f"""
import sys
from pathlib import Path

import trio

from tests.unit.block_fixture import IN, SECTOR, header, running_disk


async def main() -> None:
    async with running_disk(Path(sys.argv[1])) as disk:
        driver = disk.driver
        sent = [driver.send([header(IN, at)], [SECTOR, 1]) for at in range({REQUESTS})]
        driver.kick()
        print([(await driver.answer(each)).status for each in sent])
        disk.serving.cancel()


trio.run(main)
"""


@pytest.fixture(scope="module")
def short_kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, built."""
    folder = tmp_path_factory.mktemp("short")
    source, library = folder / "short.c", folder / "short.so"
    source.write_text(SHORT_KERNEL)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.mark.parametrize(
    "refusal",
    [errno.EAGAIN, errno.ENOMEM, errno.EBUSY, 0],
    ids=["EAGAIN", "ENOMEM", "EBUSY", "takes-one"],
)
def test_what_the_kernel_could_not_take_at_once_is_done_later(
    short_kernel: Path, tmp_path: Path, refusal: int
) -> None:
    around = os.environ | {"LD_PRELOAD": str(short_kernel), "REFUSAL": str(refusal)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "disk.raw")],
        cwd=ROOT,
        env=around,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, done.stdout) == (0, f"{[0] * REQUESTS}\n"), done.stderr
