"""Entry point of `python -m tools.nested_host`."""

from __future__ import annotations

import sys

from tools.nested_host.cli import main

if __name__ == "__main__":
    sys.exit(main())
