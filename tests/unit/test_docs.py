"""What README.md and docs/ say holds: commands, requests, tables and links of every page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.client_calls import CASES
from tests.unit.documents import PAGES, ROOT, Call, arguments_of, blocks, call_of, commands
from tools import layers
from tools.images.__main__ import _parser as images_parser
from tools.nested_host.cli import parser as nested_host_parser
from vmm.api.paths import ROUTES
from vmm.cli import Invocation, parse
from vmm.config.document import parse_document
from vmm.machine.supported import SECTIONS
from vmm.remote.__main__ import build_parser
from vmm.remote.commands import SUBCOMMANDS

REQUEST = re.compile(r"\b(GET|PUT) ((?:vmm?\.[a-z-]+(?:, )?)+)")
TARGET = re.compile(r"\]\((?!https?:)([^)#]+)")
PLACE = re.compile(r"`((?:vmm|tools|tests|docs)/[\w./]+)`")
LAYER = re.compile(r"^\| (\d) [^|]*\| (.*) \|$", re.MULTILINE)
MODULE = re.compile(r"`(vmm[\w.]*)(?:\{([\w,…]+)\})?`")


def page(name: str) -> Path:
    return ROOT / name


def served() -> set[tuple[str, str]]:
    """The requests that this version serves, as method and name."""
    return {(route.method, route.path.removeprefix("/")) for route in ROUTES}


def shown_calls() -> Iterator[tuple[str, Call]]:
    for each in PAGES:
        for words in commands(each):
            call = call_of(words)
            if call is not None:
                yield each.name, call


def shown_arguments(name: str) -> list[list[str]]:
    found = (arguments_of(words, name) for each in PAGES for words in commands(each))
    return [arguments for arguments in found if arguments is not None]


def test_every_command_line_of_the_vmm_can_be_read() -> None:
    shown = [each for each in shown_arguments("vmm") if "[OPTIONS]" not in each]

    read = [parse(arguments) for arguments in shown if arguments != ["--version"]]

    assert any(each.config is not None for each in read), "the README boots a VM"
    assert any(each == Invocation(api_socket="/tmp/vmm.sock") for each in read)


def test_every_request_is_served_with_a_body_it_takes() -> None:
    routes = {(route.method, route.path): route for route in ROUTES}

    shown = list(shown_calls())

    assert {name for name, _ in shown} >= {"README.md", "api.md"}
    for name, call in shown:
        route = routes[call.method, call.path]
        assert (call.body is None) == (route.model is None), (name, call)
        if route.model is not None and call.body is not None:
            parse_document(route.model, call.body.encode())


def test_every_command_of_the_tools_can_be_read() -> None:
    images, hosts = shown_arguments("tools.images"), shown_arguments("tools.nested_host")

    for arguments in images:
        images_parser().parse_args(arguments)
    for arguments in hosts:
        nested_host_parser().parse_args(arguments)

    assert images
    assert hosts


def test_every_target_of_make_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", page("Makefile").read_text(), re.MULTILINE))

    shown = {words[1] for each in PAGES for words in commands(each) if words[0] == "make"}

    assert shown >= {"demo", "test"}
    assert shown <= targets


def test_table_of_requests_is_what_is_served() -> None:
    shown = {
        (method, name)
        for method, names in REQUEST.findall(page("docs/api.md").read_text())
        for name in names.removesuffix(", ").split(", ")
    }

    assert shown == served()


def test_methods_of_the_client_are_those_it_has() -> None:
    text = page("docs/client.md").read_text()
    named = re.findall(r"`(\w+)`", text.partition("named after it:")[2].partition("\n\n")[0])

    assert set(named) == {case.method for case in CASES}


def test_subcommands_of_the_remote_are_those_it_has() -> None:
    table = page("docs/remote.md").read_text().partition("| subcommand |")[2].partition("\n\n")[0]
    named = {name for row in table.splitlines() for name in re.findall(r"`([a-z-]+)`", row)}

    names = {each.name for each in SUBCOMMANDS}
    assert names <= named
    for words in shown_arguments("vmm-remote"):
        build_parser().parse_args(words)


def test_limits_name_what_is_refused() -> None:
    text = page("docs/limits.md").read_text()
    sections = text.partition("configuration has one of these:")[2].partition("\n\n")[0]
    named = {name.replace("-", "_") for name in re.findall(r"`([a-z][\w-]*)`", sections)}

    assert named == set(SECTIONS)


def test_layers_are_those_that_are_checked() -> None:
    shown = {
        f"{name}{last}": int(number)
        for number, cell in LAYER.findall(page("docs/architecture.md").read_text())
        for name, choice in MODULE.findall(cell)
        for last in (choice.split(",") if choice else ("",))
        if last != "…"
    }

    assert {name: layers.layer_of(name) for name in shown} == shown
    assert set(shown.values()) == set(layers.LAYERS.values())
    for path in (ROOT / "vmm").glob("*/__init__.py"):
        package = f"vmm.{path.parent.name}"
        assert any(name.startswith(package) for name in shown), package


@pytest.mark.parametrize("each", PAGES, ids=lambda path: path.name)
def test_links_and_paths_lead_somewhere(each: Path) -> None:
    text = each.read_text()

    for target in TARGET.findall(text):
        assert (each.parent / target).exists(), target
    for place in PLACE.findall(text):
        assert (ROOT / place).exists(), place


def test_blocks_of_both_kinds_are_found(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text('Text\n\n    one \\\n      two\n\n    A=$(three "4")\n\n```\nfive\n```\nend\n')

    assert list(blocks(path)) == ['one \\\n  two\n\nA=$(three "4")', "five"]
    assert list(commands(path)) == [["one", "two"], ["three", "4"], ["A="], ["five"]]
