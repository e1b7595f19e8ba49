"""A virtual machine monitor on KVM, one trio nursery tree, driven by the Cloud Hypervisor API."""

__version__ = "0.1.0"

ORIGINAL_VERSION = "53.0.0"
"""Of Cloud Hypervisor: that whose API and command line this program has. Clients go by it."""

BUILD_VERSION = f"v{ORIGINAL_VERSION}-trio-vmm-{__version__}"
"""The same with this program's own behind it, where the original's builds say who made them."""

FEATURES = ("fw_cfg", "guest_debug", "io_uring", "kvm", "ivshmem")
"""What of Cloud Hypervisor's build options this program has, by their names and in their order."""
