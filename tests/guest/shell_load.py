"""What a guest does with its disk that has no more than a shell."""

from __future__ import annotations

from tests.guest.debian import SLOW_S, Shell


def disk_load(kib: int, rest_s: float = 0) -> str:
    """A command for the guest: use the first 16 blocks of this size on its disk from now on.

    They are written past the page cache, at places that go round, and read back: what differs is
    kept. After each it may rest.
    """
    return (
        "{ ( n=0; while [ ! -e /run/stop ]; do n=$((n+1)); at=$((n%16)); "
        f"head -c {kib << 10} /dev/urandom > /run/block; "
        f"dd if=/run/block of=/dev/vda bs={kib}k seek=$at oflag=direct 2>/dev/null; "
        f"dd if=/dev/vda of=/run/read bs={kib}k skip=$at count=1 iflag=direct 2>/dev/null; "
        "cmp /run/block /run/read || echo $n >> /run/bad; echo $n > /run/rounds; "
        f"sleep {rest_s}; done; echo ended > /run/stopped ) < /dev/null > /dev/null 2>&1 & }}"
    )


async def disk_rounds(guest: Shell) -> int:
    """End it, and return how many blocks were written and read, all of them rightly."""
    done = int(await guest.run("cat /run/rounds"))
    stop = "touch /run/stop; until [ -e /run/stopped ]; do sleep 0.1; done; cat /run/rounds"
    assert int(await guest.run(stop, SLOW_S)) >= done
    assert await guest.run("cat /run/bad 2>/dev/null; true") == ""
    return done
