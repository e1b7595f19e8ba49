"""The nested host: a stock Debian machine with KVM, emulated, for hosts without KVM."""
