"""The subcommands: what each takes, and the request that it makes of it.

Spec: Cloud Hypervisor command line, ch-remote.
"""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vmm.client import calls
from vmm.client.calls import Call
from vmm.config.device import DeviceConfig, UserDeviceConfig, VdpaConfig
from vmm.config.disk import DiskConfig
from vmm.config.fs import FsConfig
from vmm.config.generic_vhost_user import GenericVhostUserConfig
from vmm.config.model import ConfigModel
from vmm.config.net import NetConfig
from vmm.config.pmem import PmemConfig
from vmm.config.requests import ReceiveMigrationData, RestoreConfig, SendMigrationData
from vmm.config.syntax import field_syntaxes, parse_option
from vmm.config.units import parse_byte_size, parse_decimal
from vmm.config.vsock import VsockConfig
from vmm.errors import ConfigError, HostError

STDIN = "-"

LONG = ("coredump", "receive-migration", "restore", "send-migration", "snapshot")
"""The subcommands whose work may take long."""

Make = Callable[[Namespace], Call[object]]


@dataclass(frozen=True, slots=True)
class Argument:
    """A word that follows a subcommand: an option if it begins with ``--``.

    ``model`` says which option string it is, ``default`` what stands for it if it is left out.
    """

    name: str
    caption: str
    model: type[ConfigModel] | None = None
    default: str | None = None
    is_required: bool = True

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of its option string."""
        syntaxes = field_syntaxes(self.model).values() if self.model else ()
        return tuple(
            f"{key}=" if needs_value else key
            for syntax in syntaxes
            for key, needs_value in syntax.keys.items()
        )


@dataclass(frozen=True, slots=True)
class Subcommand:
    """A word of the command line that becomes a request."""

    name: str
    caption: str
    make: Make
    arguments: tuple[Argument, ...] = ()

    def target(self, given: Namespace) -> str | None:
        """The first word that follows, which is where what is written goes."""
        return vars(given)[self.arguments[0].name] if self.arguments else None


def _plain(name: str, call: Callable[[], Call[object]]) -> Subcommand:
    return Subcommand(name, _caption(call), lambda _: call())


def _optioned(
    name: str, model: type[ConfigModel], call: Callable[..., Call[object]], what: str
) -> Subcommand:
    """A subcommand whose one argument is an option string."""
    argument = Argument(what, f"key=value,… of {model.__name__}", model)
    return Subcommand(
        name,
        _caption(call),
        lambda given: call(parse_option(model, vars(given)[what])),
        (argument,),
    )


def _worded(name: str, call: Callable[[str], Call[object]], what: str, caption: str) -> Subcommand:
    """A subcommand whose one argument is sent as it is."""
    argument = Argument(what, caption)
    return Subcommand(name, _caption(call), lambda given: call(vars(given)[what]), (argument,))


def _sized(name: str, call: Callable[[str, int], Call[object]], what: str) -> Subcommand:
    """A subcommand that gives what an id names another size."""
    flag = "--disk" if what == "disk" else "--id"
    arguments = (
        Argument(flag, f"The id of the {what}"),
        Argument("--size", "The new size, in bytes or with K, M or G"),
    )

    def make(given: Namespace) -> Call[object]:
        return call(vars(given)[flag.removeprefix("--")], size_of("--size", given.size))

    return Subcommand(name, _caption(call), make, arguments)


def _caption(call: Callable[..., object]) -> str:
    """What a call does: its docstring up to the first pause."""
    return re.split(r"[;.]", call.__doc__ or "")[0]


def size_of(flag: str, text: str) -> int:
    """Read a size. Raises: ConfigError (caller)."""
    try:
        return parse_byte_size(text)
    except ValueError:
        raise ConfigError(
            f"{flag} {text} is no size; give whole bytes, or a whole number and K, M or G"
        ) from None


def _create(given: Namespace) -> Call[None]:
    if given.path == STDIN:
        return calls.create(sys.stdin.buffer.read())
    try:
        return calls.create(Path(given.path).read_bytes())
    except OSError as error:
        raise HostError.from_os_error(
            "Reading the configuration", error, path=given.path
        ) from error


def _resize(given: Namespace) -> Call[None]:
    sizes = {
        field: size_of(f"--{name}", vars(given)[name])
        for name, field in (("memory", "desired_ram"), ("balloon", "desired_balloon"))
        if vars(given)[name] is not None
    }
    if given.cpus is not None:
        try:
            sizes["desired_vcpus"] = parse_decimal(given.cpus)
        except ValueError:
            raise ConfigError(f"--cpus {given.cpus} is no number; give a whole number") from None
    return calls.resize(**sizes)


def _receive(given: Namespace) -> Call[None]:
    # Version 52 of the original takes a bare URL, later ones the key; no URL has a "=" this early.
    text = given.receive_migration_config
    option = text if text.startswith("receiver_url=") or "," in text else f"receiver_url={text}"
    return calls.receive_migration(parse_option(ReceiveMigrationData, option))


_ADDED: Mapping[str, tuple[type[ConfigModel], Callable[..., Call[object]]]] = {
    "device": (DeviceConfig, calls.add_device),
    "disk": (DiskConfig, calls.add_disk),
    "fs": (FsConfig, calls.add_fs),
    "generic-vhost-user": (GenericVhostUserConfig, calls.add_generic_vhost_user),
    "net": (NetConfig, calls.add_net),
    "pmem": (PmemConfig, calls.add_pmem),
    "user-device": (UserDeviceConfig, calls.add_user_device),
    "vdpa": (VdpaConfig, calls.add_vdpa),
    "vsock": (VsockConfig, calls.add_vsock),
}

SUBCOMMANDS: tuple[Subcommand, ...] = (
    *(
        _optioned(f"add-{name}", model, call, f"{name.replace('-', '_')}_config")
        for name, (model, call) in _ADDED.items()
    ),
    _plain("boot", calls.boot),
    _worded("coredump", calls.coredump, "coredump_config", "The file or URL to write to"),
    _plain("counters", calls.counters),
    Subcommand(
        "create",
        _caption(calls.create),
        _create,
        (Argument("path", "A file with the JSON configuration, - for stdin", default=STDIN),),
    ),
    _plain("delete", calls.delete),
    _plain("info", calls.info),
    _plain("migration", calls.migration),
    _plain("migration-cancel", calls.migration_cancel),
    _plain("nmi", calls.nmi),
    _plain("pause", calls.pause),
    _plain("ping", calls.ping),
    _plain("power-button", calls.power_button),
    _plain("reboot", calls.reboot),
    Subcommand(
        "receive-migration",
        _caption(calls.receive_migration),
        _receive,
        (
            Argument(
                "receive_migration_config", "receiver_url=… or a bare URL", ReceiveMigrationData
            ),
        ),
    ),
    _worded("remove-device", calls.remove_device, "id", "The id of the device"),
    Subcommand(
        "resize",
        _caption(calls.resize),
        _resize,
        (
            Argument("--cpus", "The new number of vCPUs", is_required=False),
            Argument("--memory", "The new size of RAM, K, M or G", is_required=False),
            Argument("--balloon", "The new size of the balloon, K, M or G", is_required=False),
        ),
    ),
    _sized("resize-disk", calls.resize_disk, "disk"),
    _sized("resize-zone", calls.resize_zone, "zone"),
    _optioned("restore", RestoreConfig, calls.restore, "restore_config"),
    _plain("resume", calls.resume),
    _optioned("send-migration", SendMigrationData, calls.send_migration, "send_migration_config"),
    _plain("shutdown", calls.shutdown),
    _plain("shutdown-vmm", calls.shutdown_vmm),
    _worded("snapshot", calls.snapshot, "snapshot_config", "The URL to write to: file:///…"),
)
