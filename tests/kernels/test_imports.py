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
    assert {"knn.py", "on_torch", "on_triton", "on_numba", "on_cluster.py"} <= {
        file.relative_to(FOLDER).parts[0] for file in files
    }
    for file in files:
        extra = {"torch_cluster"} if file.name == "on_cluster.py" else set()
        extra |= {package for package in ("triton", "numba") if f"on_{package}" in file.parts}
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
    parts = (".on_triton", ".on_numba", ".on_cluster", "numba", "torch._dynamo")
    code = f"import recon.kernels, sys; print([name for name in sys.modules if name.endswith({parts})])"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=FOLDER.parents[1])
    assert run.stdout.strip() == "[]"


def test_compiled_functions_call_those_of_their_own_file_only() -> None:
    """Numba keeps compiled code until the file of the function that is called changes, whatever it took from others."""
    for file in sorted((FOLDER / "on_numba").glob("*.py")):
        tree = ast.parse(file.read_text())
        taken = {
            alias.asname or alias.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("recon.kernels.on_numba")
            for alias in node.names
        }
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and "compiled" in map(ast.unparse, node.decorator_list):
                used = {name.id for each in node.body for name in ast.walk(each) if isinstance(name, ast.Name)}
                assert not used & taken, f"{file.name}: {node.name}"
