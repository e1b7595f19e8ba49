"""The yardstick for exit costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.kvm_cffi._kvm import lib
from vmm.kvm_cffi.check import check

if TYPE_CHECKING:
    from vmm.kvm_cffi.vcpu import Vcpu


def raw_exit_loop(vcpu: Vcpu, exits: int) -> int:
    """Run a vCPU without a thread for that many port or memory exits; return the ns it took.

    Nothing looks at the exits. Raises: HostError (host) for a failed KVM_RUN, and with EPROTO when
    the guest stops making such exits.
    """
    return check("KVM_RUN", lib.vk_raw_exit_loop(vcpu.fd, vcpu.run_area, exits))
