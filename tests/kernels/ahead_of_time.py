"""What the Triton kernels compile to on a Hopper GPU (sm_90), which takes no GPU."""

import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

triton = pytest.importorskip("triton")

TYPES = {"torch.float32": "*fp32", "torch.int64": "*i64", "torch.int32": "*i32"}


def check(module: str) -> None:
    """Compile what `module`.launch_all() would run of its MODULES' kernels; no spills, no fused multiply-add.

    In a process of its own, since this one decorated the kernels for the interpreter.
    """
    with tempfile.TemporaryDirectory() as cache:
        env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        env |= {"TRITON_CACHE_DIR": cache, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", f"import ahead_of_time; ahead_of_time.compile_all({module!r})"]
        done = subprocess.run(command, env=env, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def compile_all(module: str) -> None:
    """Run launch_all on tensors without memory, with every kernel replaced by its compiler."""
    tests = importlib.import_module(module)
    kernels = [(owner, name) for owner in tests.MODULES for name in vars(owner) if name.endswith("_kernel")]
    assert kernels
    for owner, name in kernels:
        setattr(owner, name, Compiled(getattr(owner, name)))
    tests.launch_all()
    for owner, name in kernels:
        assert getattr(owner, name).launches, f"{name} was never launched"


class Compiled:
    """Stands for a kernel: compiles for the arguments of a launch, as the launch would, in place of running."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.launches = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        assert min(grid) > 0
        return self.compile

    def compile(self, *arguments: Any, num_warps: int, enable_fp_fusion: bool, **named: Any) -> None:
        named |= dict(zip(self.kernel.arg_names, arguments, strict=False))
        signature, constants, attributes = {}, {}, {}
        for i, parameter in enumerate(self.kernel.params):
            value, whole = named[parameter.name], isinstance(named[parameter.name], int)
            special = not parameter.do_not_specialize
            if parameter.is_constexpr or value is None or (whole and value == 1 and special):
                signature[parameter.name], constants[(i,)] = "constexpr", value
                continue
            signature[parameter.name] = TYPES[str(value.dtype)] if isinstance(value, Tensor) else "i32"
            if isinstance(value, Tensor) or (value % 16 == 0 and special):
                attributes[(i,)] = [["tt.divisibility", 16]]
        source = triton.compiler.ASTSource(self.kernel, signature, constants, attributes)
        target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
        options = {"num_warps": num_warps, "enable_fp_fusion": enable_fp_fusion}
        compiled = triton.compile(source, target=target, options=options)
        assert "fma.rn.f32" not in compiled.asm["ptx"], named
        cubin = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = subprocess.check_output([triton.knobs.nvidia.cuobjdump.path, "-res-usage", cubin], text=True)
        assert "STACK:0 " in usage and "LOCAL:0 " in usage, f"{self.kernel.__name__} {named} {usage}"
        self.launches += 1
