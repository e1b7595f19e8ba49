"""Turn a negative errno from C, or an OSError, into a HostError that says what to do about it."""

from __future__ import annotations

import errno

from vmm.errors import HostError

HINTS = {
    errno.EBUSY: "it is in use: stop the other hypervisor or the other user of it first",
    errno.EMFILE: "this process has too many open files; raise its limit (ulimit -n)",
    errno.ENFILE: "the host has too many open files; raise fs.file-max",
    errno.ENOMEM: "the host is out of memory; free some or give the guest less",
    errno.EACCES: "this process lacks the permission; run it as root or in the group kvm",
    errno.EPERM: "this process lacks the permission; run it as root or in the group kvm",
    errno.ENOTTY: "the host's kernel is too old for it; use a newer one",
    errno.ENOSYS: "the host's kernel is too old for it; use a newer one",
    errno.EOPNOTSUPP: "the host's KVM does not support it; use a newer kernel or another host",
    errno.EINVAL: "the host's KVM does not accept the value; use a newer kernel or another value",
    errno.EIO: "the VM has been shut down by KVM; make a new one",
}

LOAD_MODULE = "load the kvm_intel or kvm_amd module, or give this machine nested virtualisation"

OPEN_HINTS = {
    errno.ENOENT: LOAD_MODULE,
    errno.ENXIO: LOAD_MODULE,
    errno.ENODEV: "turn virtualisation on in the firmware of this machine",
    errno.EACCES: "add the user to the group kvm, or run as root",
    errno.EPERM: "add the user to the group kvm, or run as root",
    errno.EBUSY: "another hypervisor holds the processor; stop it",
}


def check(operation: str, result: int, *, path: str | None = None) -> int:
    """Return a result of 0 or more. Raises: HostError (host) for a negative errno."""
    if result >= 0:
        return result
    hints = HINTS if path is None else HINTS | OPEN_HINTS
    raise HostError(operation, -result, path=path, hint=hints.get(-result))


def refused(operation: str, error: OSError) -> HostError:
    """Make a HostError that says what to do of what the standard library raised."""
    return HostError.from_os_error(operation, error, hint=HINTS.get(error.errno or 0))
