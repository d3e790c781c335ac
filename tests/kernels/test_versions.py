"""Which Tritons run the kernels: what they use of it decides, not whether one is installed."""

import ast
import importlib
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch

from recon.kernels import backends

# Of the names that the kernels use, those that Triton 3.2 (of torch 2.6) has; looked up in the package itself.
IN_3_2 = set(
    """abs arange cast cdiv constexpr debug_barrier float32 full int32 int64 join load max maximum min minimum
    program_id reshape sqrt_rn static_range store sum tensor uint32 where zeros""".split()  # noqa: SIM905
)
# Version: what came with it, and whether the kernels run.
RELEASES = {
    "3.2.0": (IN_3_2, False),
    "3.3.1": (IN_3_2 | {"tuple"}, False),
    "3.4.0": (IN_3_2 | {"tuple", "topk"}, True),
    "3.6.0": (IN_3_2 | {"tuple", "topk"}, True),
    "3.10.0": (IN_3_2 | {"tuple", "topk"}, True),
}


class OnGPU(torch.Tensor):
    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True


def pretend(version: str, names: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton of that version is installed, with those names in triton.language."""
    package, language = ModuleType("triton"), ModuleType("triton.language")
    package.__version__, package.language = version, language  # type: ignore[attr-defined]
    for module in (package, language):
        module.__spec__ = ModuleSpec(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in names:
        setattr(language, name, object())
    monkeypatch.delenv("RECON_KERNELS", raising=False)


@pytest.mark.parametrize("version", RELEASES)
def test_what_triton_has_decides(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names, runs = RELEASES[version]
    pretend(version, names, monkeypatch)
    points = torch.zeros(1, 2, 3).as_subclass(OnGPU)
    assert backends.choose(None, points, "op") == ("triton" if runs else "torch")
    monkeypatch.setenv("RECON_KERNELS", "cluster")  # which has no such op
    monkeypatch.setattr(backends, "_package_missing", lambda package: "")
    assert backends.choose(None, points, "op") == ("triton" if runs else "torch")
    if runs:
        assert backends.choose("triton", points, "op") == "triton"
    else:
        with pytest.raises(ValueError, match=f"backend triton needs the package triton 3.4 or newer: {version} has no"):
            backends.choose("triton", points, "op")


def test_a_triton_that_does_not_import_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend("3.6.0", set(), monkeypatch)

    def broken(name: str) -> ModuleType:
        raise ImportError("libcuda.so.1 is missing")

    monkeypatch.setattr(backends, "import_module", broken)
    points = torch.zeros(1, 2, 3).as_subclass(OnGPU)
    assert backends.choose(None, points, "op") == "torch"
    with pytest.raises(ValueError, match=r"cannot be imported: libcuda.so.1 is missing"):
        backends.choose("triton", points, "op")


def test_every_name_of_triton_is_in_the_table() -> None:
    """Whoever uses another one says there since when it is."""
    folder = Path(backends.__file__).parent / "on_triton"
    used = {
        node.attr
        for file in folder.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tl"
    }
    assert used == IN_3_2 | set(backends.TRITON_NEEDS)


def test_the_installed_triton_has_them() -> None:
    pytest.importorskip("triton")
    language = importlib.import_module("triton.language")
    assert all(hasattr(language, name) for name in IN_3_2)
    assert backends._triton_missing() == ""


@pytest.fixture
def asked_anew() -> Iterator[None]:
    backends._numba_missing.cache_clear()
    yield
    backends._numba_missing.cache_clear()


@pytest.mark.usefixtures("asked_anew")
def test_without_numba_a_cpu_takes_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECON_KERNELS", raising=False)
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    points = torch.zeros(1, 2, 3)
    assert backends.choose(None, points, "op") == "torch"
    with pytest.raises(ValueError, match="backend numba needs the package numba, which is not installed"):
        backends.choose("numba", points, "op")


@pytest.mark.usefixtures("asked_anew")
def test_a_numba_that_does_not_import_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(name: str) -> ModuleType:
        raise ImportError("Numba needs NumPy 2.4 or less")

    monkeypatch.delenv("RECON_KERNELS", raising=False)
    monkeypatch.setattr(backends, "find_spec", lambda name: True)
    monkeypatch.setattr(backends, "import_module", broken)
    for _ in range(2):
        assert backends.choose(None, torch.zeros(1, 2, 3), "op") == "torch"
    assert caplog.messages == [
        "CPU kernels run in plain torch, several times slower: numba cannot be imported: Numba needs NumPy 2.4 or less"
    ]
