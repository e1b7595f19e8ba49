"""A virtual machine monitor on KVM, one trio nursery tree, driven by the Cloud Hypervisor API."""

__version__ = "0.1.0"
