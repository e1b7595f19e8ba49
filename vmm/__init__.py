"""A virtual machine monitor on KVM, one trio nursery tree, driven by the Cloud Hypervisor API."""

__version__ = "0.1.0"

FEATURES = ("fw_cfg", "guest_debug", "io_uring", "kvm", "ivshmem")
"""What of Cloud Hypervisor's build options this program has, by their names and in their order."""
