"""The command line: which options there are, and what they ask for.

The options of the VM are not listed here. They come from the models: each has its ``FLAG`` and its
docstring, and its fields are the keys. Only the options of the VMM process itself are named below.

Exit codes: 0 for help and version asked for, 2 for a command line that cannot be read, 1 (left to
the caller, by a VmmError) for one that can be read and asks for something impossible.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from pydantic import ValidationError

from vmm import BUILD_VERSION, FEATURES, endpoints
from vmm.config.memory import MemoryConfig, MemoryZoneConfig
from vmm.config.model import ConfigModel, LaterModel
from vmm.config.payload import PayloadConfig
from vmm.config.refusal import refusals
from vmm.config.rng import RtcConfig
from vmm.config.syntax import field_syntaxes, parse_option
from vmm.config.validation import validate
from vmm.config.values import shape_of, unwrap
from vmm.config.vm import VmConfig
from vmm.errors import ConfigError, causes

if TYPE_CHECKING:
    from vmm.config.requests import RestoreConfig

PROGRAM = "trio-vmm"
USAGE = "vmm [OPTIONS] [--kernel <kernel>|--firmware <firmware>] …"
SECCOMP_MODES = ("true", "false", "log", "errno")
HELP_COLUMNS = 80
BOOT_ITEMS = ("kernel", "firmware", "igvm", "fw_cfg_config")

VMM_OPTIONS = {
    "api-socket": "Where the API is served: path=<path>, fd=<number> or a bare path",
    "event-monitor": "Where events are written: path=<path> or fd=<number>",
    "log-file": "Where the log is written, instead of stderr; the file is replaced",
    "gdb": "Where debuggers come: path=<path>; the VM waits for the first one",
    "restore": "The snapshot to go on from: source_url=<url> and how; not beside a payload",
    "log-format": "What a line of the log looks like: a text with tokens such as {level} and {msg}",
    "seccomp": "What a system call that no VMM makes does: true (it dies), log, errno; or false",
}


class Invocation(NamedTuple):
    """What one command line asks for.

    ``api_socket`` and ``event_monitor`` are a path or the number of an inherited descriptor;
    without ``config`` and ``restore`` the VMM waits for the API to create a VM.
    """

    config: VmConfig | None = None
    restore: RestoreConfig | None = None
    api_socket: str | int | None = None
    event_monitor: str | int | None = None
    gdb: str | None = None
    log_file: str | None = None
    log_format: str | None = None
    seccomp: str = SECCOMP_MODES[0]
    verbosity: int = 0
    no_shutdown: bool = False


class VmOption(NamedTuple):
    """An option that gives a part of the VM's configuration; without a model it is a switch."""

    flag: str
    field: str
    kind: type[ConfigModel] | LaterModel | None
    is_list: bool
    caption_of_switch: str = ""

    @property
    def model(self) -> type[ConfigModel] | None:
        """The model that is given, declared now if it was not."""
        return self.kind.model if isinstance(self.kind, LaterModel) else self.kind

    @property
    def caption(self) -> str:
        """What help says."""
        doc = self.caption_of_switch if self.model is None else self.model.__doc__ or ""
        return doc.partition("\n")[0].replace("``", "").removesuffix(".")

    @property
    def dest(self) -> str:
        """The option's name among the parsed arguments."""
        return self.flag.removeprefix("--").replace("-", "_")


def parse(argv: Sequence[str]) -> Invocation:
    """Read a command line, without the program's name.

    Raises: SystemExit after saying why on stderr (code 2), or after help or version (code 0);
    ConfigError (caller) with all that is wrong with the configuration.
    """
    vm_options = tuple(_vm_options())
    parser = _build_parser(vm_options)
    if not argv:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    given = parser.parse_args(argv)
    if given.version:
        print(_version_text(given.verbosity))
        raise SystemExit(0)
    texts = {name: vars(given)[name] for name in PayloadConfig.model_fields}
    payload = {name: text for name, text in texts.items() if text is not None}
    has_boot_item = any(name in payload for name in BOOT_ITEMS)
    if not has_boot_item and (payload or any(_is_given(given, each) for each in vm_options)):
        parser.error(
            "the following required arguments were not provided:\n"
            "  <--kernel <kernel>|--firmware <firmware>|--igvm <igvm>>"
        )
    return Invocation(
        config=_parse_config(given, vm_options, payload) if has_boot_item else None,
        # A payload goes before a snapshot, as in the original.
        restore=None if has_boot_item else _parse_restore(given.restore),
        api_socket=endpoints.parse_api_socket(given.api_socket),
        event_monitor=endpoints.parse_event_monitor(given.event_monitor),
        gdb=endpoints.parse_gdb(given.gdb),
        log_file=given.log_file,
        log_format=given.log_format,
        seccomp=given.seccomp or SECCOMP_MODES[0],
        verbosity=given.verbosity,
        no_shutdown=given.no_shutdown,
    )


def format_error_chain(error: BaseException) -> str:
    """Write an error and its causes as the program's last words, outermost first.

    Spec: Cloud Hypervisor command line, error output.
    """
    return format_lines(PROGRAM, sentences_of(error))


def format_lines(program: str, lines: Sequence[str]) -> str:
    """Write what a program failed with, outermost first."""
    if len(lines) == 1:
        return f"Error: {program} exited with the following error:\n  {lines[0]}"
    numbered = "\n".join(f"  {index}: {line}" for index, line in enumerate(lines))
    return f"Error: {program} exited with the following chain of errors:\n{numbered}"


def sentences_of(error: BaseException) -> list[str]:
    """Say what an error and its causes are, outermost first; every problem has its own line."""
    return [line for each in causes(error) for line in _sentences(each)]


def _sentences(error: BaseException) -> Sequence[str]:
    if isinstance(error, ConfigError):
        return error.problems
    return [str(error) or type(error).__name__]


def _vm_options() -> Iterator[VmOption]:
    for name, field in VmConfig.model_fields.items():
        kind, is_list, _ = unwrap(field)
        if isinstance(kind, LaterModel):
            yield VmOption(kind.flag, name, kind, is_list)
        elif issubclass(kind, ConfigModel):
            if kind.FLAG:
                yield VmOption(kind.FLAG, name, kind, is_list)
        elif (cli := shape_of(field).cli).key is not None:
            yield VmOption(cli.key, name, None, False, cli.caption)
    yield VmOption(MemoryZoneConfig.FLAG, "memory.zones", MemoryZoneConfig, True)


class _Parser(argparse.ArgumentParser):
    """argparse with the words and the exit codes that scripts know."""

    vm_options: tuple[VmOption, ...] = ()

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n\nUsage: {USAGE}\n\nFor more information, try '--help'.\n")

    def format_help(self) -> str:
        rows = [
            ("-h, --help", "Print this help"),
            ("-V, --version", "Print the version; with -v also what it is built with"),
            ("-v...", "Log more: info, debug, trace"),
            ("--no-shutdown", "Keep the VMM when the guest powers off"),
            *((f"--{name} <{name}>", caption) for name, caption in VMM_OPTIONS.items()),
            *(
                (f"--{_dashed(name)} <{name}>", shape_of(field).cli.caption)
                for name, field in PayloadConfig.model_fields.items()
            ),
            *(_help_row(option) for option in self.vm_options),
        ]
        body = "\n".join(f"  {flag}\n          {caption}" for flag, caption in rows)
        return f"Usage: {USAGE}\n\nOptions:\n{body}\n"


def _help_row(option: VmOption) -> tuple[str, str]:
    if option.model is None:
        return option.flag, option.caption
    keys = ",".join(
        f"{key}=" if needs_value else key
        for syntax in field_syntaxes(option.model).values()
        for key, needs_value in syntax.keys.items()
    )
    value = f"<{option.dest}>{'...' if option.is_list else ''}"
    return f"{option.flag} {value}", f"{option.caption}\n          {keys}"


def _dashed(name: str) -> str:
    return name.replace("_", "-")


class _Once(argparse.Action):
    """An option that may be given once."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"the argument '{option_string}' cannot be used multiple times")
        setattr(namespace, self.dest, values)


def _build_parser(vm_options: tuple[VmOption, ...]) -> _Parser:
    # argparse makes a formatter for every option, which would ask for the terminal's width.
    formatter = partial(argparse.HelpFormatter, width=HELP_COLUMNS)
    parser = _Parser(prog="vmm", allow_abbrev=False, formatter_class=formatter)
    parser.vm_options = vm_options
    parser.add_argument("-V", "--version", action="store_true")
    parser.add_argument("-v", dest="verbosity", action="count", default=0)
    parser.add_argument("--no-shutdown", action="store_true")
    for name in (*VMM_OPTIONS, *map(_dashed, PayloadConfig.model_fields)):
        choices = SECCOMP_MODES if name == "seccomp" else None
        parser.add_argument(f"--{name}", action=_Once, choices=choices)
    for option in vm_options:
        if option.kind is None:
            parser.add_argument(option.flag, action="store_true", default=None)
        elif option.is_list:
            parser.add_argument(option.flag, action="extend", nargs="+")
        elif option.kind is RtcConfig:  # The one object that has nothing to say.
            parser.add_argument(option.flag, action=_Once, nargs="?", const="")
        else:
            parser.add_argument(option.flag, action=_Once)
    return parser


def _version_text(verbosity: int) -> str:
    from vmm.migration.protocol import VERSION  # Only now: most VMs never move.

    # libvirt takes no other name.
    lines = [f"cloud-hypervisor {BUILD_VERSION}", f"Migration Protocol Versions: {VERSION}"]
    if verbosity:
        lines.append(f"Enabled features: [{', '.join(FEATURES)}]")
    return "\n".join(lines)


def _is_given(given: argparse.Namespace, option: VmOption) -> bool:
    return getattr(given, option.dest) is not None


def _parse_restore(text: str | None) -> RestoreConfig | None:
    """Read the option. Raises: ConfigError (caller)."""
    if text is None:
        return None
    from vmm.config.requests import RestoreConfig  # Only now: most VMs are booted.
    from vmm.config.rules.restore import validate_restore

    try:
        restore = parse_option(RestoreConfig, text)
        validate_restore(restore)
    except ConfigError as error:
        raise ConfigError("Error parsing restore") from error
    return restore


def _parse_config(
    given: argparse.Namespace, options: tuple[VmOption, ...], payload: dict[str, str]
) -> VmConfig:
    """Make the configuration of the options. Raises: ConfigError (caller) with all problems."""
    problems: list[str] = []
    parts: dict[str, object] = {}
    for option in options:
        if _is_given(given, option):
            parts[option.field] = _parse_part(option, getattr(given, option.dest), problems)
    try:
        parts["payload"] = PayloadConfig.model_validate({**payload, **_fw_cfg(payload)})
    except ValidationError as error:
        problems.extend(refusals(error))
    except ConfigError as error:
        problems.extend(f"--fw-cfg-config: {problem}" for problem in error.problems)
    if problems:
        raise ConfigError("Error parsing config") from ConfigError(*problems)
    _add_zones(parts)
    # All parts are validated models: to validate the whole would cost more than reading it did.
    config = VmConfig.model_construct(None, **parts)
    try:
        validate(config, path_exists=os.path.exists)
    except ConfigError as error:
        broken = ConfigError("Failed to validate config")
        broken.__cause__ = error
        raise ConfigError("Error parsing config") from broken
    return config


def _fw_cfg(payload: dict[str, str]) -> dict[str, object]:
    """The one part of the payload that is no text. Raises: ConfigError (caller)."""
    text = payload.get("fw_cfg_config")
    if text is None:
        return {}
    from vmm.config.fw_cfg import FwCfgConfig  # Only now: few VMs have it.

    return {"fw_cfg_config": parse_option(FwCfgConfig, text)}


def _parse_part(option: VmOption, value: object, problems: list[str]) -> object:
    if option.model is None:
        return True
    texts: list[str] = value if isinstance(value, list) else [str(value)]
    parsed: list[ConfigModel] = []
    for text in texts:
        try:
            parsed.append(parse_option(option.model, text))
        except ConfigError as error:
            problems.extend(f"{option.flag} {text}: {problem}" for problem in error.problems)
    return tuple(parsed) if option.is_list or not parsed else parsed[0]


def _add_zones(parts: dict[str, object]) -> None:
    """Put the zones into the memory; they are merged with others' pages if it is."""
    zones = parts.pop("memory.zones", None)
    if not isinstance(zones, tuple):
        return
    memory = parts.get("memory")
    if not isinstance(memory, MemoryConfig):
        memory = parse_option(MemoryConfig, "")
    filled = (
        zone
        if "mergeable" in zone.model_fields_set
        else zone.model_copy(update={"mergeable": memory.mergeable})
        for zone in zones
    )
    parts["memory"] = memory.model_copy(update={"zones": tuple(filled)})
