"""``python -m tools.bench``: run the benchmarks and print what they found.

``python -m tools.bench startup-profile`` says where the time to the first instruction goes, and
``python -m tools.bench guest`` has a stock Debian load its disk and network, in a nested host if
need be.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from tools.bench import (
    consoles,
    debian,
    disk,
    exits,
    first_instruction,
    first_reply,
    memory,
    migration,
    network,
    requests,
    snapshot,
    startup,
)
from tools.bench.errors import BenchError
from tools.bench.report import as_json, as_text
from tools.bench.series import Result

BENCHMARKS: dict[str, Callable[[int], Result]] = {
    "first-instruction": first_instruction.measure,
    "first-reply": first_reply.measure,
    "exits": exits.measure,
    "requests": requests.measure,
    "memory": memory.measure,
    "disk": disk.measure,
    "network": network.measure,
    "consoles": consoles.measure,
    "snapshot": snapshot.measure,
    "migration": migration.measure,
}
ROUNDS = 7


def main() -> int:
    """Run what is asked for. The exit code is 1 when something could not be measured at all."""
    given = _parse()
    if given.what == "startup-profile":
        print(startup.profile(given.repeat))
        return 0
    if given.what == "guest":
        return debian.main(given.repeat)
    results: list[Result] = []
    failed = False
    for name in given.only or BENCHMARKS:
        try:
            results.append(BENCHMARKS[name](given.repeat))
        except BenchError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
        else:
            print(as_text(results[-1]), end="\n\n", flush=True)
    if given.json is not None:
        document = json.dumps([as_json(result) for result in results], indent=2)
        given.json.write_text(document + "\n")
    return 1 if failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    parser.add_argument(
        "what", nargs="?", choices=("startup-profile", "guest"), help="instead of a race"
    )
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="only this benchmark")
    parser.add_argument("--repeat", type=_positive, default=ROUNDS, help="rounds (%(default)s)")
    parser.add_argument("--json", type=Path, help="write every value to this file as well")
    return parser.parse_args()


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(f"{value} rounds measure nothing; use 1 or more")
    return value


if __name__ == "__main__":
    sys.exit(main())
