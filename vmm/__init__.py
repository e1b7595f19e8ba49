"""A virtual machine monitor on KVM, one trio nursery tree, driven by the Cloud Hypervisor API."""
