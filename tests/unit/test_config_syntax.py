"""The grammar of option strings: separators, quotes, brackets, and each kind of value."""

from __future__ import annotations

import pytest

from vmm.config.balloon import BalloonConfig
from vmm.config.cpus import CoreSchedulingMode, CpuAffinity, CpusConfig, CpuTopology
from vmm.config.disk import DiskConfig, ImageType, LockGranularity
from vmm.config.memory import HotplugMethod, MemoryConfig
from vmm.config.model import ConfigModel
from vmm.config.net import NetConfig, VhostMode
from vmm.config.numa import NumaConfig, NumaDistance
from vmm.config.platform import PlatformConfig
from vmm.config.requests import RestoreConfig, RestoredNetConfig, ZoneUpdate
from vmm.config.rng import RtcConfig
from vmm.config.syntax import format_option, parse_option
from vmm.config.tokens import dequote, quote, split
from vmm.config.units import GIB, KIB, MIB
from vmm.errors import ConfigError


def refusal(model: type[ConfigModel], text: str) -> str:
    """The sentence that refuses an option string."""
    with pytest.raises(ConfigError) as caught:
        parse_option(model, text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a=1,b=2", ["a=1", "b=2"]),
        ("a=[1,2],b=3", ["a=[1,2]", "b=3"]),
        ("a=[0@[1,2],1@[3]],b", ["a=[0@[1,2],1@[3]]", "b"]),
        ('a="x,y",b', ['a="x,y"', "b"]),
        ('a="]",b', ['a="]"', "b"]),
        ('a="x""],y",b', ['a="x""],y"', "b"]),
        ("a,", ["a", ""]),
    ],
)
def test_split_outside_quotes_and_brackets_cuts(text: str, pieces: list[str]) -> None:
    assert split(text) == pieces


@pytest.mark.parametrize("text", ['a="x', "a=[1", "a=1]", "a=]1[", 'a=["]'])
def test_parse_unbalanced_text_names_the_whole_string(text: str) -> None:
    assert refusal(DiskConfig, f"path=x,{text}").startswith(f"Invalid syntax: path=x,{text}")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("plain", "plain"),
        ('"a,b"', "a,b"),
        ('"a""b"', 'a"b'),
        ('a"b c"d', "ab cd"),
        ('""', ""),
        ('""""', '"'),
        ('"a"b""', "ab"),
    ],
)
def test_dequote_drops_quotes_and_keeps_doubled_ones(written: str, meant: str) -> None:
    assert dequote(written) == meant


@pytest.mark.parametrize("text", ["", "a,b", "[x]", 'say "hi"', " padded ", "a@b", "plain"])
def test_quote_any_text_is_undone_by_dequote(text: str) -> None:
    assert dequote(quote(text)) == text


def test_parse_empty_string_gives_the_defaults() -> None:
    assert parse_option(RtcConfig, "") == RtcConfig()
    assert parse_option(CpusConfig, "  ") == CpusConfig(boot_vcpus=1, max_vcpus=1)


def test_parse_unknown_key_is_refused_by_name_with_the_known_ones() -> None:
    message = refusal(CpusConfig, "boot=2,cores=4")
    assert message.startswith("Unknown option: cores; ")
    assert "max_phys_bits" in message


def test_parse_key_with_a_blank_is_another_key() -> None:
    assert refusal(CpusConfig, "boot=2, max=4").startswith("Unknown option:  max;")


@pytest.mark.parametrize("text", ["boot=1,", ",boot=1", "boot=1,,max=2"])
def test_parse_empty_piece_is_an_unknown_key(text: str) -> None:
    assert refusal(CpusConfig, text).startswith("Unknown option: ;")


def test_parse_key_without_its_value_is_refused() -> None:
    assert refusal(CpusConfig, "boot").startswith("Invalid syntax: boot;")


def test_parse_value_with_equals_signs_keeps_them() -> None:
    assert parse_option(DiskConfig, "path=/a=b=c").path == "/a=b=c"


def test_parse_value_with_blanks_around_is_trimmed() -> None:
    assert parse_option(DiskConfig, "path= /a b ").path == "/a b"


def test_parse_repeated_key_takes_the_last() -> None:
    assert parse_option(CpusConfig, "boot=2,boot=3").boot_vcpus == 3


def test_parse_empty_value_means_the_default() -> None:
    disk = parse_option(DiskConfig, "path=,num_queues=,readonly=")
    assert (disk.path, disk.num_queues, disk.readonly) == (None, 1, False)


def test_parse_quoted_empty_value_is_an_empty_text() -> None:
    assert parse_option(DiskConfig, 'path=""').path == ""


@pytest.mark.parametrize(
    ("word", "value"),
    [("on", True), ("TRUE", True), ("Off", False), ("false", False), ('""', False)],
)
def test_parse_toggle_in_any_case(word: str, value: bool) -> None:
    assert parse_option(MemoryConfig, f"thp={word}").thp is value


@pytest.mark.parametrize("word", ["yes", "1", "0", "no", "onn"])
def test_parse_toggle_other_words_are_refused(word: str) -> None:
    assert refusal(MemoryConfig, f"thp={word}").startswith(f"Unable to convert {word} for thp;")


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("1K", KIB), ("3M", 3 * MIB), ("2G", 2 * GIB), ('"1G"', GIB)],
)
def test_parse_byte_size_takes_one_upper_case_suffix(text: str, size: int) -> None:
    assert parse_option(BalloonConfig, f"size={text}").size == size


@pytest.mark.parametrize(
    "text", ["1T", "1g", "0x10", "1.5G", "G", "1 G", "1GB", "-1", "+1", "1_0", "٣", "1KM"]
)
def test_parse_byte_size_other_forms_are_refused(text: str) -> None:
    assert refusal(BalloonConfig, f"size={text}").startswith(f"Unable to convert {text} for size;")


def test_parse_byte_size_over_64_bits_is_refused() -> None:
    assert "at most 18446744073709551615" in refusal(BalloonConfig, "size=18446744073709551615K")


@pytest.mark.parametrize("text", ["1K", "0x1", "1.0", "-1", "+1", "", "9" * 5000])
def test_parse_integer_is_plain_decimal(text: str) -> None:
    quoted = f'"{text}"'
    assert "for num_queues;" in refusal(DiskConfig, f"num_queues={quoted}")


def test_parse_integer_over_its_width_names_the_limit() -> None:
    message = refusal(DiskConfig, "queue_size=65536")
    assert message == "Unable to convert 65536 for queue_size; give at most 65535"


def test_parse_integer_of_a_renamed_key_names_the_key() -> None:
    assert refusal(CpusConfig, "boot=0").startswith("Unable to convert 0 for boot;")
    assert "for iommu_address_width;" in refusal(PlatformConfig, "iommu_address_width=256")


def test_parse_rate_limit_size_takes_no_suffix() -> None:
    message = refusal(DiskConfig, "bw_size=1M,bw_refill_time=100")
    assert message.startswith("Unable to convert 1M for bw_size;")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("[0,2-4,6]", (0, 2, 3, 4, 6)),
        ("0", (0,)),
        ("2-3", (2, 3)),
        ("[]", ()),
        ("[5,1]", (5, 1)),
    ],
)
def test_parse_integer_list_with_ranges(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_option(NumaConfig, f"guest_numa_id=0,cpus={text}").cpus == numbers


@pytest.mark.parametrize(
    "text", ["[3-3]", "[4-2]", "[1, 2]", "[a]", "[1-]", "[-1]", "[1-2-3]", "[1,]", "[0-65536]"]
)
def test_parse_integer_list_other_forms_are_refused(text: str) -> None:
    message = refusal(NumaConfig, f"guest_numa_id=0,cpus={text}")
    assert message.startswith(f"Unable to convert {text} for cpus;")


def test_parse_integer_list_of_many_ranges_is_bounded() -> None:
    many = ",".join(["0-60000"] * 20)
    assert "more than 65536 numbers" in refusal(NumaConfig, f"guest_numa_id=0,cpus=[{many}]")


@pytest.mark.parametrize(
    ("text", "strings"),
    [
        ("[a,b]", ("a", "b")),
        ("a", ("a",)),
        ('["a,b", c]', ("a,b", "c")),
        ('"x"', ("x",)),
        ("[]", ()),
        ('[""]', ("",)),
        ('["a]b"]', ("a]b",)),
    ],
)
def test_parse_string_list_with_quoted_elements(text: str, strings: tuple[str, ...]) -> None:
    assert parse_option(PlatformConfig, f"oem_strings={text}").oem_strings == strings


def test_parse_tuple_list_of_integer_lists() -> None:
    cpus = parse_option(CpusConfig, "boot=2,affinity=[0@[0-3], 1@[4,5]]")
    assert cpus.affinity == (
        CpuAffinity(vcpu=0, host_cpus=(0, 1, 2, 3)),
        CpuAffinity(vcpu=1, host_cpus=(4, 5)),
    )


def test_parse_tuple_list_of_integers() -> None:
    numa = parse_option(NumaConfig, "guest_numa_id=0,cpus=[0],distances=[1@15,2@25]")
    assert numa.distances == (
        NumaDistance(destination=1, distance=15),
        NumaDistance(destination=2, distance=25),
    )


@pytest.mark.parametrize(
    "text", ["0@1", "[0]", "[0@1@2]", "[@1]", "[0@]", "[0@1,]", "[x@1]", '["0@1"]']
)
def test_parse_tuple_list_other_forms_are_refused(text: str) -> None:
    message = refusal(NumaConfig, f"guest_numa_id=0,distances={text}")
    assert message.startswith(f"Unable to convert {text} for distances;")


def test_parse_tuple_list_with_text_keys() -> None:
    restore = parse_option(
        RestoreConfig, "source_url=file:///s,net_fds=[n0@[3,4]],zone_updates=[z@1]"
    )
    assert restore.net_fds == (RestoredNetConfig(id="n0", fds=(3, 4)),)
    assert restore.zone_updates == (ZoneUpdate(id="z", host_numa_node=1),)


def test_parse_topology_takes_four_numbers() -> None:
    cpus = parse_option(CpusConfig, "boot=8,topology=2:2:1:2")
    assert cpus.topology == CpuTopology(
        threads_per_core=2, cores_per_die=2, dies_per_package=1, packages=2
    )


@pytest.mark.parametrize("text", ["2:2:1", "1:1:1:1:1", "a:1:1:1", "", "65536:1:1:1"])
def test_parse_topology_other_forms_are_refused(text: str) -> None:
    assert "for topology;" in refusal(CpusConfig, f'boot=8,topology="{text}"')


def test_parse_features_by_name() -> None:
    assert parse_option(CpusConfig, "boot=1,features=[amx]").features.amx is True
    assert parse_option(CpusConfig, "boot=1,features=amx").features.amx is True
    assert "sgx is none of amx" in refusal(CpusConfig, "boot=1,features=[amx,sgx]")


def test_parse_max_without_a_value_follows_boot() -> None:
    assert parse_option(CpusConfig, "boot=4").max_vcpus == 4
    assert parse_option(CpusConfig, "boot=4,max=8").max_vcpus == 8
    assert parse_option(CpusConfig, "").max_vcpus == 1


def test_parse_words_of_enumerations() -> None:
    assert parse_option(CpusConfig, "core_scheduling=off").core_scheduling is CoreSchedulingMode.OFF
    assert parse_option(CpusConfig, "profile=host").profile == "Host"
    memory = parse_option(MemoryConfig, "hotplug_method=virtio-mem")
    assert memory.hotplug_method is HotplugMethod.VIRTIO_MEM
    disk = parse_option(DiskConfig, "path=x,lock_granularity=full")
    assert disk.lock_granularity is LockGranularity.FULL
    assert parse_option(NetConfig, "vhost_mode=Server").vhost_mode is VhostMode.SERVER


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("raw", ImageType.RAW),
        ("qcow2", ImageType.QCOW2),
        ("vhd", ImageType.FIXED_VHD),
        ("vhdx", ImageType.VHDX),
        ("vmdk", ImageType.FLAT_VMDK),
    ],
)
def test_parse_image_type_words(word: str, kind: ImageType) -> None:
    assert parse_option(DiskConfig, f"path=x,image_type={word}").image_type is kind


def test_parse_image_type_unknown_cannot_be_asked_for() -> None:
    message = refusal(DiskConfig, "path=x,image_type=unknown")
    assert "give one of raw, qcow2, vhd, vhdx, vmdk" in message


def test_parse_several_bad_values_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_option(DiskConfig, "path=x,queue_size=65536,pci_device_id=256")
    assert len(caught.value.problems) == 2


def test_format_leaves_defaults_out_and_quotes_what_needs_it() -> None:
    disk = DiskConfig(path="/a,b", readonly=True, num_queues=1)
    assert format_option(disk) == 'path="/a,b",readonly=on'
    assert format_option(MemoryConfig(size=3 * GIB)) == "size=3G"
