"""Where the time from the command line to the guest's first instruction goes."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tools.bench import importtime
from tools.bench.first_instruction import vmm_arguments
from tools.bench.guests import SIGN_OF_LIFE, write_guests
from tools.bench.importtime import Module
from tools.bench.processes import launched, python

STANDARD_PACKAGES_SHOWN = 16


def profile(rounds: int) -> str:
    """Run the start several times; return tables by step and by import, medians in ms.

    The last column of the steps adds the processor time up.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kernel = write_guests(folder).power_off
        arguments = vmm_arguments(kernel)
        _import_modules(arguments)  # Fills the caches; what comes next is counted.
        modules = [_import_modules(arguments) for _ in range(rounds)]
        marks = [_run_steps(folder / "marks", arguments) for _ in range(rounds)]
    return "\n".join((*_step_lines(marks), "", *_import_lines(modules)))


class Step(NamedTuple):
    """A step of the start: the time it took, and the processor time, in ms."""

    name: str
    ms: float
    cpu_ms: float


def _run_steps(marks_file: Path, arguments: Sequence[str]) -> list[Step]:
    """Run the VMM with marks, and say how long after one another they were reached."""
    at_ms, at_cpu_ms = time.monotonic_ns() / 1e6, 0.0
    command = python("-m", "tools.bench.startup_steps", str(marks_file), *arguments)
    with launched(*command) as launch:
        launch.ms_to_byte(SIGN_OF_LIFE)
        end = ("first instruction", time.monotonic_ns(), int(launch.cpu_ms * 1e6))
        launch.ms_to_exit(0)
    steps: list[Step] = []
    # The guest shows life before the loop comes to the last marks, at times.
    marks = [mark for mark in json.loads(marks_file.read_text()) if mark[1] < end[1]]
    for name, ns, cpu_ns in (*marks, end):
        steps.append(Step(name, ns / 1e6 - at_ms, cpu_ns / 1e6 - at_cpu_ms))
        at_ms, at_cpu_ms = ns / 1e6, cpu_ns / 1e6
    return steps


def _step_lines(runs: Sequence[Sequence[Step]]) -> Iterator[str]:
    by_name: dict[str, list[Step]] = {}
    for run in runs:
        for step in run:
            by_name.setdefault(step.name, []).append(step)
    yield f"{'step':36} {'ms':>8} {'CPU ms':>8} {'in all':>8}"
    total = 0.0
    for name, steps in by_name.items():
        cpu_ms = median(step.cpu_ms for step in steps)
        total += cpu_ms
        yield f"{name:36} {median(step.ms for step in steps):8.1f} {cpu_ms:8.1f} {total:8.1f}"


def _import_modules(arguments: Sequence[str]) -> list[Module]:
    with launched(*python("-X", "importtime", "-m", "vmm", *arguments)) as launch:
        text = launch.stderr_to_end()
        launch.ms_to_exit(0)
    return importtime.parse(text)


def _import_lines(runs: Sequence[list[Module]]) -> Iterator[str]:
    # One run as a whole, not a mixture: the one whose sum is the median.
    by_sum = sorted(runs, key=lambda run: sum(module.own_us for module in run))
    modules = by_sum[len(by_sum) // 2]
    yield f"{'import, timed':36} {'modules':>8} {'own':>8} {'stdlib':>8} {'ms':>8}"
    for share in importtime.shares(modules):
        sizes = f"{share.own_ms:8.1f} {share.standard_ms:8.1f} {share.total_ms:8.1f}"
        yield f"{share.package:36} {share.modules:8} {sizes}"
    yield ""
    yield f"{'of the standard library':36} {'ms':>8}  wanted first by"
    for package, owner, ms in importtime.standard_packages(modules)[:STANDARD_PACKAGES_SHOWN]:
        yield f"{package:36} {ms:8.1f}  {owner}"
