"""Where the time from the command line to the guest's first instruction goes."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from tools.bench import importtime
from tools.bench.first_instruction import vmm_arguments
from tools.bench.guests import SIGN_OF_LIFE, write_guests
from tools.bench.importtime import Module
from tools.bench.processes import launched, python

STANDARD_PACKAGES_SHOWN = 16


def profile(rounds: int) -> str:
    """Run the start several times; return tables by step and by import, medians in ms."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kernel = write_guests(folder).power_off
        arguments = vmm_arguments(kernel)
        _import_modules(arguments)  # Fills the caches; what comes next is counted.
        modules = [_import_modules(arguments) for _ in range(rounds)]
        marks = [_run_steps(folder / "marks", arguments) for _ in range(rounds)]
    return "\n".join((*_step_lines(marks), "", *_import_lines(modules)))


def _run_steps(marks_file: Path, arguments: Sequence[str]) -> list[tuple[str, float]]:
    """Run the VMM with marks; each step with the ms since the step before."""
    start_ns = time.monotonic_ns()
    command = python("-m", "tools.bench.startup_steps", str(marks_file), *arguments)
    with launched(*command) as launch:
        launch.ms_to_byte(SIGN_OF_LIFE)
        end_ns = time.monotonic_ns()
        launch.ms_to_exit(0)
    marks = [(step, int(at)) for step, at in json.loads(marks_file.read_text())]
    # The guest has shown life before the mark behind the start of its thread is set, at times.
    reached = [*(mark for mark in marks if mark[1] < end_ns), ("first instruction", end_ns)]
    before = [start_ns, *(at for _, at in reached)]
    return [(step, (at - last) / 1e6) for (step, at), last in zip(reached, before, strict=False)]


def _step_lines(runs: Sequence[Sequence[tuple[str, float]]]) -> Iterator[str]:
    durations: dict[str, list[float]] = {}
    for run in runs:
        for step, ms in run:
            durations.setdefault(step, []).append(ms)
    yield f"{'step':36} {'ms':>8} {'in all':>8}"
    total = 0.0
    for step, values in durations.items():
        total += median(values)
        yield f"{step:36} {median(values):8.1f} {total:8.1f}"


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
