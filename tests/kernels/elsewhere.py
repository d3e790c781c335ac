"""A device that is neither a CPU nor CUDA, for machines without one: the values lie on the CPU, but say otherwise."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map


class Elsewhere(Tensor):
    """A CPU tensor that says that it lies on `Device.name`, and cannot be read by NumPy."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device(Device.name)

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("a tensor of another device has no NumPy array")


class Device(TorchFunctionMode):
    """While entered, what is made on the device stays there, and meets no CPU tensor of any axis."""

    name = "xpu"

    def __init__(self, name: str) -> None:
        super().__init__()
        Device.name = name

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [isinstance(tensor, Elsewhere) for tensor in tensors]
        if any(here) and not all(there or tensor.dim() == 0 for there, tensor in zip(here, tensors, strict=True)):
            raise RuntimeError(f"{getattr(func, '__name__', func)} met tensors of two devices")
        made = str(kwargs.get("device")).split(":")[0] == self.name
        if made:
            kwargs["device"] = "cpu"
            if self.name == "mps" and kwargs.get("dtype") == torch.float64:
                raise TypeError("MPS has no float64")
        found = func(*args, **kwargs)
        return tree_map(lambda x: x.as_subclass(Elsewhere), found) if made else found
