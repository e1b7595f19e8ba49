"""Run the VMM with a mark at each step of its start: ``python -m tools.bench.startup_steps``.

The first argument is the file for the marks, the others are the VMM's own. The steps are marked
from outside, by wrapping what the program calls, so the program knows of no clock. What it would
import a little later is imported at the mark before.
"""

from __future__ import annotations

import time

BEGIN_NS = time.monotonic_ns()  # Before any other import: these are part of what is timed.

import json  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterator, Sequence  # noqa: E402
from contextlib import AbstractContextManager, contextmanager  # noqa: E402
from importlib import import_module  # noqa: E402
from pathlib import Path  # noqa: E402
from types import ModuleType  # noqa: E402


class Marks:
    """The steps in the order they were reached, each with the monotonic clock's time in ns."""

    def __init__(self) -> None:
        self.reached: list[tuple[str, int]] = [("interpreter runs", BEGIN_NS)]

    def add(self, step: str) -> None:
        """The step has been reached now."""
        self.reached.append((step, time.monotonic_ns()))

    def after(self, owner: object, name: str, step: str) -> None:
        """Mark a step whenever what ``owner`` calls by ``name`` has returned."""
        original: Callable[..., object] = getattr(owner, name)

        def wrapper(*args: object, **kwargs: object) -> object:
            result = original(*args, **kwargs)
            self.add(step)
            return result

        setattr(owner, name, wrapper)

    def once_entered(self, owner: object, name: str, step: str) -> None:
        """Mark a step whenever the context manager that ``name`` makes has been entered."""
        original: Callable[..., AbstractContextManager[object]] = getattr(owner, name)

        @contextmanager
        def wrapper(*args: object, **kwargs: object) -> Iterator[object]:
            with original(*args, **kwargs) as value:
                self.add(step)
                yield value

        setattr(owner, name, wrapper)


def main() -> int:
    """Run the VMM, then write the marks down."""
    marks_file = Path(sys.argv.pop(1))
    marks = Marks()
    import trio  # noqa: F401

    marks.add("trio imported")
    from pydantic import BaseModel  # noqa: F401

    marks.add("pydantic imported")
    from vmm import __main__ as program

    marks.add("command line and models imported")
    _mark_parse(program, marks)
    code = program.main()
    marks_file.write_text(json.dumps(marks.reached))
    return code


def _mark_parse(program: ModuleType, marks: Marks) -> None:
    parse: Callable[[Sequence[str]], object] = program.parse

    def marked(argv: Sequence[str]) -> object:
        invocation = parse(argv)
        marks.add("command line read and validated")
        _mark_machine(marks)
        return invocation

    vars(program)["parse"] = marked


def _mark_machine(marks: Marks) -> None:
    loop = import_module("vmm.loop")
    vm = import_module("vmm.machine.vm")
    thread = import_module("vmm.kvm_cffi.thread")
    marks.add("machine imported")
    marks.after(loop, "run_vmm", "loop runs")
    marks.after(vm, "check_supported", "configuration checked again")
    marks.after(vm.processors, "describe", "KVM opened, CPUID made")
    marks.after(vm, "_set_up_irqchip", "VM created")
    marks.once_entered(vm.GuestMemory, "open", "memory mapped")
    marks.once_entered(vm, "open_chipset", "chipset made")
    marks.after(vm.firmware, "write", "tables written, kernel loaded")
    marks.once_entered(vm.processors, "create", "vCPUs created")
    marks.after(vm.VcpuTask, "__init__", "vCPU threads made")
    marks.after(thread.VcpuThread, "start", "vCPU started")


if __name__ == "__main__":
    sys.exit(main())
