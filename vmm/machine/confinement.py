"""What an error means where Landlock keeps files from this process."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vmm.errors import ConfigError, HostError, VmmError, causes

if TYPE_CHECKING:
    from vmm.config.vm import VmConfig


def explained(error: VmmError, config: VmConfig | None) -> VmmError:
    """Give an error, or one around it that says how to keep the file that Landlock took away."""
    if config is None or not config.landlock_enable:
        return error
    for cause in causes(error):
        if isinstance(cause, HostError) and cause.errno == errno.EACCES and cause.path:
            outer = ConfigError(
                f"landlock_enable (--landlock) is on, and nothing keeps {cause.path}; name it or "
                "its directory in landlock_rules (--landlock-rules) when the VM is created"
            )
            outer.__cause__ = error
            return outer
    return error
