import ast
import sys
from pathlib import Path

import kernels


def test_kernels_need_only_torch_and_numpy() -> None:
    """They are to run from a bare checkout on a GPU machine with nothing else installed."""
    allowed = {"kernels", "torch", "numpy", *sys.stdlib_module_names}
    for file in Path(kernels.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            assert {name.split(".")[0] for name in names} <= allowed, file.name
