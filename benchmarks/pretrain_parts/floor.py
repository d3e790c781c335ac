"""The time below which a step's matrix products cannot fall: each at the rate the library reaches with it alone."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from pretrain_parts.clock import elapsed
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

ATEN = torch.ops.aten
PRODUCTS = (ATEN.mm.default, ATEN.addmm.default, ATEN.bmm.default, ATEN.baddbmm.default)


@dataclass(frozen=True)
class Product:
    """One matrix product: its operation, and shape, strides and type of every operand."""

    operation: Any
    operands: tuple[tuple[tuple[int, ...], tuple[int, ...], torch.dtype], ...]

    @property
    def flops(self) -> int:
        """A multiplication and an addition counted as two."""
        (left, _, _), (right, _, _) = self.operands[-2:]
        return 2 * prod(left) * right[-1]

    def __str__(self) -> str:
        def told(shape: tuple[int, ...], stride: tuple[int, ...]) -> str:
            turned = len(shape) > 1 and stride[-1] > stride[-2]
            return f"{list(shape)}{' transposed' if turned else ''}"

        name = self.operation.overloadpacket.__name__
        return f"{name} {' x '.join(told(shape, stride) for shape, stride, _ in self.operands[-2:])}"

    def seconds(self, device: torch.device) -> tuple[float, float]:
        """Seconds of it alone: called as a step calls it, its result's memory fresh, and with that memory at hand."""
        given = [_random(*operand, device) for operand in self.operands]
        result = self.operation(*given)
        with_result = self.operation.overloadpacket.out
        return (
            elapsed(lambda: self.operation(*given), device),
            elapsed(lambda: with_result(*given, out=result), device),
        )


class Products(TorchDispatchMode):
    """Counts the matrix products that run inside it, backward ones too."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Product] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in PRODUCTS:
            operands = [value for value in args if isinstance(value, Tensor)]
            self.counts[Product(func, tuple((tuple(t.shape), t.stride(), t.dtype) for t in operands))] += 1
        return func(*args, **(kwargs or {}))


def count(step: Callable[[], Any], model: nn.Module) -> tuple[int, Counter[Product]]:
    """Floating-point operations of one step of `model` by torch's own counter, and its matrix products.

    They are those of the plain form: where a layer has a form that needs fewer, the floor may be passed.

    Attention is written out meanwhile, so that its products are counted one by one; its fused backward forms one of
    them a second time, which is not counted. Where nothing but `PRODUCTS` is counted, both agree.
    """
    # With a hook on every layer, which the trainer's faster forms would not call and so make way for.
    hooks = [layer.register_forward_hook(lambda *_: None) for layer in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator for a whole layer, which no counter knows
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, Products() as products:
            step()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for hook in hooks:
            hook.remove()
    return counter.get_total_flops(), products.counts


def _random(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    room = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    return torch.randn(room, dtype=dtype, device=device).as_strided(shape, stride)
