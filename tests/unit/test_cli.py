"""The command line: what it asks for, what it refuses, and with which exit code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from vmm.cli import Invocation, format_error_chain, parse
from vmm.config.console import ConsoleMode
from vmm.config.vm import VmConfig
from vmm.errors import ConfigError, HostError, VmmError

ROOT = Path(__file__).parents[2]
KERNEL = ["--kernel", "/k"]


def config_of(*arguments: str) -> VmConfig:
    """The configuration of a command line that boots a kernel."""
    config = parse([*KERNEL, *arguments]).config
    assert config is not None
    return config


def problems(*arguments: str) -> tuple[str, ...]:
    """What is said of a configuration that is refused, without the outer sentences."""
    with pytest.raises(ConfigError) as caught:
        parse([*KERNEL, *arguments])
    inner: BaseException = caught.value
    while inner.__cause__ is not None:
        inner = inner.__cause__
    assert isinstance(inner, ConfigError)
    return inner.problems


def usage_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What stderr says of a command line that cannot be read."""
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    return output.err


def test_parse_no_arguments_prints_help_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--kernel" in usage_error(capsys)


def test_parse_help_names_every_option_and_key_and_exits_0(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert not caught.value.code
    text = capsys.readouterr().out
    for field in VmConfig.model_fields:
        if field not in ("payload", "iommu"):
            flag = {
                "disks": "disk",
                "devices": "device",
                "user_devices": "user-device",
                "rate_limit_groups": "rate-limit-group",
                "pci_segments": "pci-segment",
                "landlock_enable": "landlock",
            }.get(field, field.replace("_", "-"))
            assert f"\n  --{flag}" in text
    assert "boot=,max=,topology=" in text
    assert "--memory-zone <memory_zone>..." in text


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_parse_version_prints_what_libvirt_looks_for_and_the_program_and_exits_0(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse([flag])
    assert caught.value.code == 0
    first, second = capsys.readouterr().out.splitlines()
    # virCHDriver of libvirt: this name, then major.minor.micro, and from 40.0 on all it can use.
    found = re.match(r"cloud-hypervisor v(\d+)\.\d+\.\d+-trio-vmm-\d", first)
    assert found is not None
    assert int(found[1]) >= 40
    assert second == "Migration Protocol Versions: 0"


def test_parse_version_with_v_also_prints_the_features(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse(["--version", "-v"])
    assert (
        "\nEnabled features: [fw_cfg, guest_debug, io_uring, kvm, ivshmem]\n"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nothing"], "unrecognized arguments: --nothing"),
        (["word"], "unrecognized arguments: word"),
        (["--kern", "/k"], "unrecognized arguments"),
        (["--kernel"], "--kernel: expected one argument"),
        (["--kernel", "/a", "/b"], "unrecognized arguments: /b"),
        (["--kernel", "/a", "--kernel", "/b"], "'--kernel' cannot be used multiple times"),
        ([*KERNEL, "--cpus", "boot=1", "--cpus", "boot=2"], "'--cpus' cannot be used multiple"),
        ([*KERNEL, "--disk"], "--disk: expected at least one argument"),
        ([*KERNEL, "--seccomp", "maybe"], "invalid choice: 'maybe'"),
    ],
)
def test_parse_unreadable_command_line_exits_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = usage_error(capsys, *arguments)
    assert message.startswith("error: ")
    assert words in message
    assert "For more information, try '--help'." in message


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cpus", "boot=2"],
        ["--disk", "path=/d"],
        ["--rtc"],
        ["--watchdog"],
        ["--cmdline", "quiet"],
        ["--initramfs", "/i"],
        ["--memory-zone", "id=a"],
        ["--landlock", "--api-socket", "/s"],
    ],
)
def test_parse_vm_options_without_a_payload_exit_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = usage_error(capsys, *arguments)
    assert "the following required arguments were not provided" in message


@pytest.mark.parametrize(
    ("arguments", "invocation"),
    [
        (["-v"], Invocation(verbosity=1)),
        (["-vv", "-v"], Invocation(verbosity=3)),
        (["--api-socket", "path=/s"], Invocation(api_socket="/s")),
        (["--api-socket=path=/s"], Invocation(api_socket="/s")),
        (["--api-socket", "/s"], Invocation(api_socket="/s")),
        (["--api-socket", "/s,t=1"], Invocation(api_socket="/s,t=1")),
        (["--api-socket", 'path="/s,t"'], Invocation(api_socket="/s,t")),
        (["--api-socket", "fd=7"], Invocation(api_socket=7)),
        (["--event-monitor", "path=/e"], Invocation(event_monitor="/e")),
        (["--event-monitor", "fd=3"], Invocation(event_monitor=3)),
        (["--gdb", "path=/g"], Invocation(gdb="/g")),
        (["--log-file", "/l"], Invocation(log_file="/l")),
        (["--log-format", "{msg}"], Invocation(log_format="{msg}")),
        (["--no-shutdown"], Invocation(no_shutdown=True)),
        (["--seccomp", "false"], Invocation(seccomp="false")),
        (["-v"], Invocation(seccomp="true", verbosity=1)),
    ],
)
def test_parse_vmm_options_alone_make_no_vm(arguments: list[str], invocation: Invocation) -> None:
    assert parse(arguments) == invocation


@pytest.mark.parametrize("text", ["fd=x", "fd=-1", "fd=", "path=", "path=/s,fd=3"])
def test_parse_api_socket_without_one_place_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--api-socket"):
        parse(["--api-socket", text])


@pytest.mark.parametrize("text", ["/e", "file=/e", "path=", "", "fd=x", "path=/e,fd=3"])
def test_parse_event_monitor_without_one_place_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--event-monitor"):
        parse(["--event-monitor", text])


@pytest.mark.parametrize("text", ["/g", "path=", "", "fd=3", "path=/g,x=1"])
def test_parse_gdb_without_a_path_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--gdb"):
        parse(["--gdb", text])


def test_parse_event_monitor_empty_says_what_is_required() -> None:
    with pytest.raises(ConfigError, match="path or fd required"):
        parse(["--event-monitor", ""])


def test_parse_kernel_alone_has_the_defaults() -> None:
    config = config_of()
    assert config == VmConfig.model_validate({"payload": {"kernel": "/k"}})
    assert config.model_fields_set == {"payload"}


def test_parse_payload_options() -> None:
    config = parse(["--firmware", "/f", "--cmdline", "console=ttyS0 quiet"]).config
    assert config is not None
    assert config.to_json()["payload"] == {"firmware": "/f", "cmdline": "console=ttyS0 quiet"}


def test_parse_empty_kernel_is_refused_and_not_taken_for_none() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(["--kernel", ""])
    assert "Payload configuration is not bootable" in format_error_chain(caught.value)


def test_parse_every_kind_of_option_reaches_its_section() -> None:
    config = config_of(
        *("--cpus", "boot=2,max=4", "--memory", "size=1G,shared=on", "--serial", "tty"),
        *("--console", "off", "--debug-console", "tty,iobase=0x402"),
        *("--disk", "path=/a", "path=/b", "--disk", "path=/c", "--net", "tap=t"),
        *("--rng", "src=/r", "--balloon", "size=1M", "--fs", "tag=t,socket=/s"),
        *("--generic-vhost-user", "device_type=fs,socket=/s,queue_sizes=[4]", "--pmem", "file=/p"),
        *("--device", "path=/d", "--user-device", "socket=/u", "--vdpa", "path=/v"),
        *("--vsock", "cid=3,socket=/s", "--numa", "guest_numa_id=0,cpus=[0]"),
        *("--pci-segment", "pci_segment=0", "--platform", "system_uuid=u", "--tpm", "socket=/t"),
        *("--rate-limit-group", "id=g,bw_size=1,bw_refill_time=1", "--watchdog", "--pvpanic"),
        *("--rtc", "--landlock", "--landlock-rules", "path=/,access=r"),
        *("--ivshmem", "path=/dev/shm/s,size=4M,pci_device_id=9"),
    )
    everything = set(VmConfig.model_fields) - {"iommu"}
    assert config.model_fields_set == everything
    assert [disk.path for disk in config.disks or ()] == ["/a", "/b", "/c"]
    assert config.serial.mode is ConsoleMode.TTY
    assert (config.watchdog, config.pvpanic, config.landlock_enable) == (True, True, True)
    assert config.ivshmem is not None
    assert (config.ivshmem.path, config.ivshmem.size) == ("/dev/shm/s", 4 << 20)
    assert VmConfig.model_validate(config.to_json()) == config


def test_parse_rtc_takes_a_value_or_none() -> None:
    for arguments in (["--rtc"], ["--rtc", ""], ["--rtc="]):
        assert config_of(*arguments).rtc is not None
    rtc = config_of("--rtc", "id=clock").rtc
    assert rtc is not None
    assert rtc.id == "clock"


def test_parse_zones_go_into_the_memory_and_inherit_mergeable() -> None:
    memory = config_of(
        *("--memory", "size=0,mergeable=on"),
        *("--memory-zone", "id=a,size=1G", "id=b,size=2G,mergeable=off"),
    ).memory
    assert memory.total_size == 3 << 30
    assert [zone.mergeable for zone in memory.zones or ()] == [True, False]


def test_parse_zones_without_memory_add_to_its_default() -> None:
    assert config_of("--memory-zone", "id=a,size=1G").total_memory() == (1 << 30) + (512 << 20)


def test_parse_bad_options_are_all_named_with_their_text() -> None:
    assert problems("--cpus", "boot=x", "--disk", "path=/a", "size=1", "--memory", "size=1T") == (
        "--cpus boot=x: Unable to convert x for boot; it is not a plain decimal number",
        "--memory size=1T: Unable to convert 1T for size; "
        "give whole bytes, or a whole number and K, M or G",
        *problems("--disk", "size=1"),
    )
    assert problems("--disk", "size=1")[0].startswith("--disk size=1: Unknown option: size;")


def test_parse_name_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(["--kernel", "/\udcff"])
    assert "kernel is '/\\udcff'; it is not valid UTF-8" in format_error_chain(caught.value)


def test_parse_broken_rules_are_named_below_the_outer_sentences() -> None:
    with pytest.raises(ConfigError) as caught:
        parse([*KERNEL, "--cpus", "boot=4,max=2", "--balloon", "size=1G"])
    lines = format_error_chain(caught.value).splitlines()
    assert lines[:3] == [
        "Error: trio-vmm exited with the following chain of errors:",
        "  0: Error parsing config",
        "  1: Failed to validate config",
    ]
    assert lines[3].startswith("  2: cpus.max_vcpus (--cpus max=): Max CPUs (2) lower than boot")
    assert lines[4].startswith("  3: balloon.size (--balloon size=): Balloon size")
    assert len(lines) == 5


def test_parse_landlock_rule_without_its_path_is_refused(tmp_path: Path) -> None:
    config_of("--landlock-rules", f"path={tmp_path},access=rw")
    (problem,) = problems("--landlock-rules", f"path={tmp_path}/gone,access=r")
    assert "does not exist" in problem


def test_format_error_chain_of_one_error_is_indented() -> None:
    assert format_error_chain(VmmError("No luck")) == (
        "Error: trio-vmm exited with the following error:\n  No luck"
    )


def test_format_error_chain_counts_the_causes() -> None:
    error = VmmError("Error booting VM")
    error.__cause__ = HostError("open", 2, path="/k")
    assert format_error_chain(error).splitlines() == [
        "Error: trio-vmm exited with the following chain of errors:",
        "  0: Error booting VM",
        "  1: open on /k failed: No such file or directory (ENOENT)",
    ]


def test_format_error_chain_says_once_what_the_host_refused() -> None:
    low = FileNotFoundError(2, "No such file or directory", "/k")
    error = HostError.from_os_error("open", low)
    error.__cause__ = low

    assert format_error_chain(error).splitlines()[1:] == [
        "  open on /k failed: No such file or directory (ENOENT)"
    ]


def test_format_error_chain_of_a_silent_error_names_its_type() -> None:
    assert format_error_chain(KeyError()).endswith("\n  KeyError")


def test_command_line_path_imports_neither_answers_nor_requests() -> None:
    program = (
        "import sys; from vmm.cli import parse; parse(['--kernel', '/k', '--cpus', 'boot=2']);"
        "print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    unwanted = {"vmm.config.info", "vmm.config.requests", "vmm.config.document", "trio", "quart"}
    assert unwanted.isdisjoint(loaded)


def test_documentation_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    help_text = capsys.readouterr().out
    document = (ROOT / "docs" / "command-line.md").read_text()
    for line in help_text.splitlines():
        if line.startswith("  --"):
            assert f"`{line.split()[0]}`" in document
