"""Run the VMM with a mark at each step of its start: ``python -m tools.bench.startup_steps``.

The first argument is the file for the marks, the others are the VMM's own. The steps are marked
from outside, by wrapping what the program calls, so the program knows of no clock. What it would
import a little later is imported at the mark before. A mark is the step's name, the monotonic time
and the processor time, both in ns.
"""

from __future__ import annotations

import time

BEGIN = (time.monotonic_ns(), time.process_time_ns())  # Before any import that is to be timed.

import gc  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterator, Sequence  # noqa: E402
from contextlib import AbstractContextManager, contextmanager  # noqa: E402
from functools import reduce  # noqa: E402
from importlib import import_module  # noqa: E402
from pathlib import Path  # noqa: E402
from types import ModuleType  # noqa: E402
from typing import NamedTuple  # noqa: E402


class MachineStep(NamedTuple):
    """A call of the program, by the module and the name that its caller knows it by.

    The step is reached when the call has returned or, where that makes a context, is entered.
    """

    module: str
    name: str
    step: str
    is_entered: bool = False


VM = "vmm.machine.vm"
MACHINE_STEPS = (
    MachineStep("vmm.loop", "run_vmm", "loop runs"),
    MachineStep(VM, "check_supported", "configuration checked again"),
    MachineStep(VM, "processors.describe", "KVM opened, CPUID made"),
    MachineStep(VM, "split_irqchip", "VM created"),
    MachineStep(VM, "GuestMemory.open", "memory mapped", is_entered=True),
    MachineStep(VM, "open_chipset", "chipset made", is_entered=True),
    MachineStep(VM, "firmware.write", "tables written, kernel loaded"),
    MachineStep(VM, "Vcpus.__init__", "vCPUs set up"),
    MachineStep("vmm.machine.vcpus", "VcpuTask.__init__", "vCPU threads made"),
    MachineStep("vmm.kvm_cffi", "VcpuThread.start", "vCPU started"),
)


class Marks:
    """The steps in the order they were reached."""

    def __init__(self) -> None:
        self.reached: list[tuple[str, int, int]] = [("interpreter runs", *BEGIN)]

    def add(self, step: str) -> None:
        """The step has been reached now."""
        self.reached.append((step, time.monotonic_ns(), time.process_time_ns()))

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
    # As the program itself does, before it imports anything.
    gc.disable()
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    from vmm import __main__ as program
    from vmm.deferred import defer

    defer(*program.UNUSED)
    import trio  # noqa: F401

    marks.add("trio imported")
    from pydantic import BaseModel  # noqa: F401

    marks.add("pydantic imported")
    from vmm import cli

    marks.add("command line and models imported")
    _mark_parse(cli, marks)
    code = program.main()
    marks_file.write_text(json.dumps(marks.reached))
    return code


def _mark_parse(cli: ModuleType, marks: Marks) -> None:
    parse: Callable[[Sequence[str]], object] = cli.parse

    def marked(argv: Sequence[str]) -> object:
        invocation = parse(argv)
        marks.add("command line read and validated")
        _mark_machine(marks)
        return invocation

    vars(cli)["parse"] = marked


def _mark_machine(marks: Marks) -> None:
    modules = [import_module(step.module) for step in MACHINE_STEPS]
    marks.add("machine imported")
    for module, (_, names, step, is_entered) in zip(modules, MACHINE_STEPS, strict=True):
        *path, name = names.split(".")
        owner = reduce(getattr, path, module)
        mark = marks.once_entered if is_entered else marks.after
        mark(owner, name, step)


if __name__ == "__main__":
    sys.exit(main())
