"""What tests of the VMM and of its devices are made with; nothing here runs in production.

``process``, ``api`` and ``console`` drive a whole VMM from outside: start it, talk to its API, use
its guest's shell. ``schema`` holds what the API answers against its document. ``memory``,
``driver`` and ``virtio_pci`` stand in for a guest: its RAM, its side of a virtqueue, its driver of
a PCI device. ``packets`` and ``namespace`` give a network device its wire.
"""
