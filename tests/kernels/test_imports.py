import ast
import subprocess
import sys
from pathlib import Path

import pytest

from recon import kernels

FOLDER = Path(kernels.__path__[0])


def test_kernels_need_only_torch_and_numpy() -> None:
    """They are to run from a bare checkout with nothing else installed; each other backend adds its own package."""
    files = sorted(FOLDER.rglob("*.py"))
    assert {"knn.py", "on_torch", "on_triton", "on_cluster.py"} <= {file.relative_to(FOLDER).parts[0] for file in files}
    for file in files:
        # pykdtree and SciPy are taken where they are; the search does without.
        extra = {"on_cluster.py": {"torch_cluster"}, "tree.py": {"scipy", "pykdtree"}}.get(file.name, set())
        extra |= {"triton"} if "on_triton" in file.parts else set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            allowed = {"recon", "torch", "numpy", *extra, *sys.stdlib_module_names}
            assert {name.split(".")[0] for name in names} <= allowed, file.name


@pytest.mark.slow
def test_the_other_backends_and_the_compiler_are_imported_by_need_only() -> None:
    parts = (".on_triton", ".on_cluster", "torch._dynamo")
    code = f"import recon.kernels, sys; print([name for name in sys.modules if name.endswith({parts})])"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=FOLDER.parents[1])
    assert run.stdout.strip() == "[]"
