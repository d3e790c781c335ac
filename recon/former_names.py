"""What a checkout's folders do when they are imported by the names they once had: `pipeline`, `trainer`, `kernels`.

Those names are other packages' now, and Python looks into the folder one works in before it looks at what is installed.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path


def stands_aside(name: str) -> bool:
    """Import the package `name` that is further back on the path in our folder's place; False where there is none."""
    elsewhere = [entry for entry in sys.path if not (Path(entry) / "data_manifests").is_dir()]  # in no checkout
    spec = PathFinder.find_spec(name, elsewhere)
    if spec is None or spec.loader is None:
        return False
    sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return True


def moved(name: str) -> ImportError:
    """The one line that says the new name."""
    return ImportError(f"no module {name!r} any more: it is recon.{name} (from recon.{name} import ...)")
