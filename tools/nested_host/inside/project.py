"""A warm interpreter with a package of the project imported: `-m nested_inside.project vmm`.

A session that starts the same program many times starts this beside; from then on `python` is a
fork of it. It does not notice that the package's files change, so it ends with the session.
"""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import sys
from typing import Final

from .command import become, run
from .warm import WarmServer

PROJECT_SOCKET: Final = "/run/nested/project.sock"


def main() -> None:
    """Import a package whole, then serve; the children come back from `serve` and never return."""
    package = importlib.import_module(sys.argv[1])
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()
    # Under another name first: whoever finds the socket can connect.
    draft = f"{PROJECT_SOCKET}.{os.getpid()}"
    server = WarmServer(draft)
    os.rename(draft, PROJECT_SOCKET)
    command = server.serve()
    become(command)
    run(command)


if __name__ == "__main__":
    main()
