"""Requests of the API document that this version cannot serve: refused by name, never unknown."""

from __future__ import annotations

from vmm.api.routes import Answer, Route, Service
from vmm.errors import UnsupportedError

_ACTIONS = {
    "/vm.resize": "The VM could not be resized",
    "/vm.resize-zone": "The memory zone could not be resized",
    "/vm.add-device": "The device could not be added to the VM",
    "/vm.remove-device": "The device could not be removed from the VM",
    "/vm.add-disk": "The disk could not be added to the VM",
    "/vm.add-fs": "The fs could not be added to the VM",
    "/vm.add-generic-vhost-user": "The generic vhost-user device could not be added to the VM",
    "/vm.add-pmem": "The pmem device could not be added to the VM",
    "/vm.add-net": "The network device could not be added to the VM",
    "/vm.add-vsock": "The vsock device could not be added to the VM",
    "/vm.add-vdpa": "The vDPA device could not be added to the VM",
    "/vm.add-user-device": "The user device could not be added to the VM",
    "/vm.snapshot": "The VM could not be snapshotted",
    "/vm.coredump": "The VM could not be coredumped",
    "/vm.restore": "The VM could not be restored",
    "/vm.receive-migration": "Error receiving migration",
    "/vm.send-migration": "Error dispatching the migration worker",
}


def _absent(path: str, action: str) -> Route:
    async def refuse(service: Service, _body: bytes) -> Answer:
        raise UnsupportedError(
            f"{path} is part of the API, but version {service.about.version} of this VMM"
            " does not have it: use a later version"
        )

    return Route(path, "PUT", action, frozenset({UnsupportedError}), None, refuse)


ROUTES = tuple(_absent(path, action) for path, action in _ACTIONS.items())
