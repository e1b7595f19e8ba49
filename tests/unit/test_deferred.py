"""Modules put off: they load at their first use, and not before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vmm.__main__ import UNUSED

MODULES = [each.partition(":")[0] for each in UNUSED]


def run(script: str, *arguments: str) -> list[str]:
    """Run a script in an interpreter of its own and return what it prints, in words."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with a module that tells when its code runs, and another that imports it."""
    (tmp_path / "late.py").write_text(
        "print('late')\ndef answer(): return 42\nclass Thing: pass\nfrom os import path\n"
    )
    (tmp_path / "user.py").write_text("import late\nfrom late import answer\nimport late as l\n")
    return tmp_path


def test_deferred_module_runs_at_the_first_look_at_it(package: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from vmm.deferred import defer; defer('late')\n"
        "import late; import late; print('imported'); late.Thing; print(late.__spec__.name)\n"
        "print(type(late).__name__, sys.modules['late'] is late)"
    )
    assert run(script, str(package)) == ["imported", "late", "late", "module", "True"]


def test_deferred_function_runs_its_module_when_it_is_called(package: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from vmm.deferred import defer; defer('late:answer')\n"
        "import user; print('imported'); print(user.answer(), user.answer())\n"
        "print(user.late.answer is not user.answer)"
    )
    assert run(script, str(package)) == ["imported", "late", "42", "42", "True"]


def test_deferred_module_lacks_what_the_module_lacks(package: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from vmm.deferred import defer; defer('late')\n"
        "import late; print(hasattr(late, 'nothing'), hasattr(late, 'answer'))"
    )
    assert run(script, str(package)) == ["late", "False", "True"]


def test_module_in_c_or_absent_is_imported_as_ever() -> None:
    script = (
        "from vmm.deferred import defer; defer('_json', 'no_such_module')\n"
        "import _json; print(type(_json).__name__)\n"
        "try: import no_such_module\n"
        "except ModuleNotFoundError as error: print(error.name)"
    )
    assert run(script) == ["module", "no_such_module"]


@pytest.mark.parametrize("module", MODULES)
def test_what_a_start_puts_off_works_when_it_is_used(module: str) -> None:
    script = (
        "import sys, importlib; from vmm.__main__ import UNUSED; from vmm.deferred import defer\n"
        "defer(*UNUSED)\n"
        "import trio, pydantic\n"
        "module = importlib.import_module(sys.argv[1])\n"
        "print(type(module).__name__); module.no_such = 1\n"
        "try: module.nothing\n"
        "except AttributeError: pass\n"
        "print(type(module).__name__, len(vars(module)) > 12)"
    )
    assert run(script, module) == ["_Deferred", "module", "True"]


def test_start_does_not_use_what_it_puts_off() -> None:
    script = (
        "import os; os.environ['PYDANTIC_DISABLE_PLUGINS'] = '__all__'\n"
        "import sys; from vmm.__main__ import UNUSED; from vmm.deferred import defer\n"
        "defer(*UNUSED)\n"
        "import trio; from vmm.cli import parse; parse(['--kernel', '/dev/null'])\n"
        "import vmm.loop, vmm.machine.vm\n"
        "names = [each.partition(':')[0] for each in UNUSED]\n"
        "print(*[name for name in names if type(sys.modules.get(name)).__name__ == 'module'])"
    )
    assert run(script) == []
