"""What a stock Debian guest does while it moves, and what it must have seen of it: nothing."""

from __future__ import annotations

from tests.guest.debian import SLOW_S, Shell
from tests.guest.echoes import PORT

# Written before the guest moves, looked at when it has: a part of the disk that stays as it is.
SETTLED = (
    "fio --name=settled --filename=/dev/vdb --offset=16m --size=4m --rw=write --bs=64k "
    "--eta=never --ioengine=libaio --iodepth=8 --direct=1 --verify=crc32c --verify_fatal=1 "
    "--output=/run/settled"
)
# Another part is written and looked at over and over.
DISK_LOAD = (
    "( n=0; bad=0; while [ ! -e /run/stop ]; do fio --name=load --filename=/dev/vdb --size=4m "
    "--rw=randwrite --bsrange=4k-64k --ioengine=libaio --iodepth=8 --direct=1 --rate=2m "
    "--randrepeat=0 --eta=never --verify=crc32c --verify_fatal=1 --output=/run/load "
    "|| { bad=1; break; }; n=$((n+1)); echo $n > /run/rounds; done; echo $bad > /run/loaded ) "
    "< /dev/null > /dev/null 2>&1 &"
)
# A number in each of so many pages, counted up round after round; what differs ends it.
MEMORY_LOAD = (
    "( perl -e '$m = qq(\\0) x (4096 * 1024); for ($r = 0; !-e qq(/run/stop); $r++) { "
    "for ($at = 0; $at < length $m; $at += 4096) { "
    "exit 1 if unpack(qq(N), substr($m, $at, 4)) != $r; "
    "substr($m, $at, 4) = pack(qq(N), $r + 1) } select undef, undef, undef, 0.1 } "
    "print $r' > /run/counted; echo $? > /run/remembered ) &"
)
# Whatever comes from a host goes back to it.
ECHO = "( exec 3<> /dev/tcp/{0}/{1}; cat <&3 >&3; echo $? > /run/echoed-{0} ) &"

# A kernel says these of itself or of a device that failed it. Not among them are lockups and
# stalls: an emulated host that others keep busy stands still for longer than a kernel's patience.
WRONG = "kernel BUG|Oops|general protection|unable to handle|I/O error|EXT4-fs error"
"""Pattern of egrep."""


async def start_load(guest: Shell, *peers: str) -> None:
    """Have it use its second disk and its memory, and answer the peers at these addresses."""
    await guest.run(f"{SETTLED} --do_verify=0", SLOW_S)
    for load in (DISK_LOAD, MEMORY_LOAD, *(ECHO.format(peer, PORT) for peer in peers)):
        await guest.run(f"{{ {load} }}")


async def check_load(guest: Shell, rounds: int, *peers: str) -> None:
    """End what the guest does, all of which has found everything as it left it.

    It has counted more than so many ``rounds`` through its memory, and the peers have ended before.
    """
    await guest.run("touch /run/stop")
    ended = ["loaded", "remembered", *(f"echoed-{peer}" for peer in peers)]
    for load in ended:
        await guest.run(f"until [ -s /run/{load} ]; do sleep 0.1; done", SLOW_S)
    seen = await guest.run(f"cd /run; cat load {' '.join(ended)}")
    assert seen.endswith("\n" + len(ended) * "0\n"), seen
    assert int(await guest.run("cat /run/rounds")) > 0
    assert int(await guest.run("cat /run/counted")) > rounds
    await guest.run(f"{SETTLED} --verify_only || {{ cat /run/settled; false; }}", SLOW_S)
    assert await guest.run(f"dmesg | grep -E '{WRONG}' || true") == ""
