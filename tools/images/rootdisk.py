"""A root disk for guests: Debian 12 on ext4 in a raw image, which boots to multi-user by systemd.

Made with mmdebstrap and `mkfs.ext4 -d`: no loop device, and no root where the user has subordinate
ids. The disk has no kernel: any stock kernel boots it with the initramfs variant ``root``, which
brings the modules. It obeys the words of the kernel command line that ``guest_init.sh`` obeys, and
``ip=`` as systemd-network-generator(8) does.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Final

from tools.images.cache import ImageError, cache_dir, exclusive, make_file
from tools.images.mirror import machine_sources, source_for, to_deb822

PACKAGES: Final = (
    "acpid", "e2fsprogs", "ethtool", "fio", "iperf3", "iproute2", "iputils-ping", "kmod", "procps",
    "systemd-sysv", "udev",
)  # fmt: skip
EXCLUDED: Final = ("doc", "info", "locale", "man")
SUITES: Final = ("bookworm", "bookworm-updates", "bookworm-security")
DISK_BYTES: Final = 1 << 30

_HERE: Final = Path(__file__).parent

# What a test never waits for: on an emulated processor each unit is a tenth of a second or more.
_MASKED_UNITS: Final = (
    # chores of a machine that lives long
    "apt-daily-upgrade.timer", "apt-daily.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
    "e2scrub_reap.service", "fstrim.timer", "systemd-tmpfiles-clean.timer",
    # file systems and modules nothing here uses
    "dev-hugepages.mount", "dev-mqueue.mount", "kmod-static-nodes.service", "modprobe@.service",
    "proc-sys-fs-binfmt_misc.automount", "sys-fs-fuse-connections.mount", "sys-kernel-config.mount",
    "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "systemd-binfmt.service",
    "systemd-modules-load.service",
    # records that outlive a boot
    "systemd-journal-flush.service", "systemd-pstore.service", "systemd-random-seed.service",
    "systemd-update-utmp-runlevel.service", "systemd-update-utmp.service",
    # logind needs a message bus; acpid hears the power button in its place
    "systemd-logind.service",
    "systemd-ask-password-console.path", "systemd-ask-password-wall.path",
    # what an upgrade of the disk would need
    "systemd-hwdb-update.service", "systemd-journal-catalog-update.service",
    "systemd-sysusers.service", "systemd-update-done.service",
    # the first serial port belongs to guest-run.service; there is no screen
    "getty-static.service", "getty@tty1.service", "serial-getty@ttyS0.service",
)  # fmt: skip
_MASKED_GENERATORS: Final = (
    "cryptsetup", "debug", "fstab", "gpt-auto", "hibernate-resume", "integritysetup", "rc-local",
    "run", "system-update", "sysv", "veritysetup",
)  # fmt: skip

# Started by what the disk holds, in place of what `systemctl enable` would link.
_WANTED: Final = {
    "sysinit.target": "systemd-network-generator.service",
    "multi-user.target": "systemd-networkd.service",
    "network-online.target": "systemd-networkd-wait-online.service",
}

_GUEST_TARGET: Final = """\
[Unit]
Description=A guest that does what its kernel command line asks for
Requires=multi-user.target
After=multi-user.target
Wants=network-online.target guest-run.service
"""

# An interactive shell ignores SIGTERM, so that without SIGHUP a power-off would wait for it.
_GUEST_RUN: Final = """\
[Unit]
Description=Run what the kernel command line asks for
After=multi-user.target network-online.target

[Service]
ExecStart=/usr/local/lib/guest/run
StandardInput=tty-force
StandardOutput=tty
TTYPath=/dev/ttyS0
Environment=HOME=/root TERM=linux
SendSIGHUP=yes
"""

_SAY_END: Final = """\
#!/bin/sh
case "$1" in
    reboot) echo GUEST-REBOOT ;;
    *) echo GUEST-POWEROFF ;;
esac > /dev/ttyS0
"""

_FILES: Final = {
    "etc/acpi/events/power": (
        "event=button/power.*\naction=/usr/bin/systemctl start --no-block poweroff.target\n"
    ),
    # With an identity there is no first boot, which would set everything up anew.
    "etc/machine-id": f"{hashlib.md5(b'guest', usedforsecurity=False).hexdigest()}\n",
    "etc/hostname": "guest\n",
    "etc/hosts": "127.0.0.1 localhost guest\n::1 localhost\n",
    "etc/resolv.conf": "",
    "etc/fstab": "",
    "etc/systemd/journald.conf.d/guest.conf": "[Journal]\nStorage=volatile\n",
    "etc/systemd/system/guest.target": _GUEST_TARGET,
    "etc/systemd/system/guest-run.service": _GUEST_RUN,
    # A guest without an address on its command line does without a network.
    **{
        f"etc/systemd/system/{unit}.d/guest.conf": "[Unit]\nConditionKernelCommandLine=ip\n"
        for unit in (
            "systemd-network-generator.service",
            "systemd-networkd-wait-online.service",
            "systemd-networkd.service",
            "systemd-networkd.socket",
        )
    },
}
_PROGRAMS: Final = {"usr/lib/systemd/system-shutdown/say-end": _SAY_END}

# $1: archive of Debian, $2: archive of our files, $3: image, $4: scratch directory, rest: mkfs.
# tar is told to leave device nodes, which need root proper; the guest's devtmpfs has them all.
_ASSEMBLE: Final = """\
set -eu
debian=$1 ours=$2 image=$3 root=$4/root
shift 4
trap 'rm -rf "$root"' EXIT
mkdir -m 755 "$root"
tar -xf "$debian" -C "$root" --numeric-owner --exclude='./dev/*'
tar -xf "$ours" -C "$root" --numeric-owner
sed -i 's/^root:[^:]*:/root::/' "$root/etc/shadow"
"$@" -d "$root" "$image"
"""


def root_disk() -> Path:
    """Return the raw image of the root disk, made if the cache has none like it.

    Guests write to their root: boot a copy, never this file.

    Raises: ImageError: a program is missing or failed, or the mirror did (host).
    """
    recipe = hashlib.sha256(repr((PACKAGES, EXCLUDED, SUITES)).encode())
    packages_key = recipe.hexdigest()[:12]
    for source in (Path(__file__), _HERE / "root_run.sh"):
        recipe.update(source.read_bytes())
    folder = cache_dir() / "root-disks"
    image = folder / f"bookworm-{recipe.hexdigest()[:12]}.raw"
    if image.exists():  # Nothing to hold: the cache may be on a file system that is read-only.
        return image
    with exclusive("root-disks"):
        archive = make_file(folder / f"bookworm-{packages_key}.tar.zst", _fetch_debian)
        return make_file(image, lambda path: _write_image(path, archive))


def _fetch_debian(archive: Path) -> None:
    """Install the packages into an archive."""
    machine = machine_sources()
    found = [source_for(suite, machine) for suite in SUITES]
    sources = archive.with_name("debian.sources")
    sources.write_text("\n".join(to_deb822(source) for source in found if source is not None))
    mode = "root" if os.geteuid() == 0 else "unshare"
    _run(
        "mmdebstrap", f"--mode={mode}", "--variant=minbase", "--quiet",
        f"--include={','.join(PACKAGES)}",
        "--aptopt=APT::Install-Recommends false", "--aptopt=Acquire::Check-Valid-Until false",
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in EXCLUDED),
        "bookworm", str(archive), str(sources),
        package="mmdebstrap uidmap",
    )  # fmt: skip


def _write_image(image: Path, archive: Path) -> None:
    """Write the packages and our files as a file system with a journal."""
    ours = image.with_name("ours.tar")
    write_additions(ours)
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    # Nothing is left for the guest's kernel to initialise: it would write for a minute.
    mkfs = (
        "mkfs.ext4", "-q", "-L", "root", "-N", "32768", "-J", "size=16",
        "-E", "lazy_itable_init=0,lazy_journal_init=0",
    )  # fmt: skip
    # With subordinate ids the files of others than root get their owners without root's rights.
    user = () if os.geteuid() == 0 else ("unshare", "--user", "--map-root-user", "--map-auto")
    places = (str(archive), str(ours), str(image), str(image.parent))
    _run(*user, "sh", "-c", _ASSEMBLE, "sh", *places, *mkfs, package="e2fsprogs uidmap zstd")
    # What mkfs wrote as zeros takes no place, neither here nor in copies.
    _run("fallocate", "--dig-holes", str(image), package="util-linux")


def write_additions(path: Path) -> None:
    """Write the archive of what makes Debian a guest; everything in it is root's."""
    run = (_HERE / "root_run.sh").read_text()
    with tarfile.open(path, "w") as archive:
        for name, text in _FILES.items():
            _add_file(archive, name, text, 0o644)
        for name, text in {**_PROGRAMS, "usr/local/lib/guest/run": run}.items():
            _add_file(archive, name, text, 0o755)
        units, generators = "etc/systemd/system", "etc/systemd/system-generators"
        for unit in _MASKED_UNITS:
            _add_link(archive, f"{units}/{unit}", "/dev/null")
        for name in _MASKED_GENERATORS:
            _add_link(archive, f"{generators}/systemd-{name}-generator", "/dev/null")
        for target, unit in _WANTED.items():
            _add_link(archive, f"{units}/{target}.wants/{unit}", f"/lib/systemd/system/{unit}")
        _add_link(archive, f"{units}/default.target", "guest.target")


def _add_file(archive: tarfile.TarFile, name: str, text: str, permissions: int) -> None:
    entry = tarfile.TarInfo(name)
    data = text.encode()
    entry.size, entry.mode = len(data), permissions
    archive.addfile(entry, io.BytesIO(data))


def _add_link(archive: tarfile.TarFile, name: str, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    archive.addfile(entry)


def _run(*command: str, package: str) -> None:
    """Run a program of the host; ``package`` is what has it."""
    # Those that make file systems are among the administrator's, which a user's PATH leaves out.
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
        )
    except FileNotFoundError as error:
        raise ImageError(f"{command[0]} is not installed; apt-get install {package}.") from error
    if done.returncode != 0:
        raise ImageError(f"{command[0]} failed: {done.stderr.strip()[-2000:]}")
