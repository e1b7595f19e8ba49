"""Guest images from Debian packages: kernels, initramfs, firmware, and a QEMU beside them."""
