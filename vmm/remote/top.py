"""The live view: what the VM is, and what its devices count, in total and a second."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from itertools import count as counting

from vmm.client import Client
from vmm.config.info import VmCounters, VmInfo
from vmm.config.units import format_byte_size

CLEAR = "\033[H\033[J"
"""Moves a terminal's cursor home and clears what is below it."""


def show(client: Client, interval: float, count: int | None, *, as_json: bool) -> None:
    """Print ``count`` views, or views until interrupted, each ``interval`` seconds after the last.

    As JSON, a view is a line: seconds since the last one, and of each counter the total and the
    increase.
    """
    before, at = client.counters(), time.monotonic()
    for _ in counting() if count is None else range(count):
        time.sleep(interval)
        info, after, now = client.info(), client.counters(), time.monotonic()
        if as_json:
            print(_line(before, after, now - at), flush=True)
        else:
            text = view(info, before, after, now - at)
            print(f"{CLEAR}{text}" if sys.stdout.isatty() else f"{text}\n", flush=True)
        before, at = after, now


def view(info: VmInfo, before: VmCounters, after: VmCounters, seconds: float) -> str:
    """Make the text of one view."""
    memory = format_byte_size(info.memory_actual_size or info.config.total_memory())
    lines = [f"{info.state.value}, {info.config.cpus.boot_vcpus} vCPUs, {memory} RAM", ""]
    lines.append(f"{'DEVICE':<24} {'COUNTER':<24} {'TOTAL':>20} {'PER SECOND':>14}")
    lines += [
        f"{device:<24} {name:<24} {total:>20} {increase / seconds:>14.1f}"
        for device, name, total, increase in _increases(before, after)
    ]
    return "\n".join(lines)


def _line(before: VmCounters, after: VmCounters, seconds: float) -> str:
    counters: dict[str, dict[str, dict[str, int]]] = {}
    for device, name, total, increase in _increases(before, after):
        counters.setdefault(device, {})[name] = {"total": total, "increase": increase}
    return json.dumps({"seconds": round(seconds, 6), "counters": counters})


def _increases(before: VmCounters, after: VmCounters) -> Iterator[tuple[str, str, int, int]]:
    """Yield device, counter, total and increase; a device that is new began with nothing."""
    for device, counts in sorted(after.items()):
        earlier = before.get(device, {})
        for name, total in sorted(counts.items()):
            # A device that was replaced, or a VM that was rebooted, counts anew.
            increase = total - earlier.get(name, 0)
            yield device, name, total, increase if increase >= 0 else total
