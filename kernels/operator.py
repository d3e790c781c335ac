"""Operators of `torch.library` that cost a small call no more than their own arithmetic.

The dispatcher, with the checks and wrappers of a Python operator, takes 40 microseconds a call, as long as all pairs of
two small clouds. It is needed where something looks on that has to see one operator: the compiler, a tracer, a mode, a
transform of torch.func, a tensor that is more than one. Elsewhere the operator's function is called itself.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op


class Operator:
    """A function of tensors under the name `recon::...`; called, it gives the same in either way.

    `function` is what it does, `registered` torch's operator of it.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self.function = function
        self.registered = custom_op(f"recon::{name}", function, mutates_args=())
        self._differentiable: type[torch.autograd.Function] | None = None

    def register_fake(self, fake: Callable[..., Any]) -> None:
        """Shapes and dtypes of what it returns, from arguments without values."""
        self.registered.register_fake(fake)

    def register_autograd(self, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
        """Its gradient, as in `torch.library.register_autograd`."""
        self.registered.register_autograd(backward, setup_context=setup_context)

        def forward(ctx: Any, *arguments: Any) -> Any:
            output = self.function(*arguments)
            setup_context(ctx, arguments, output)
            return output

        # Not with setup_context as a method: `apply` would look up forward's signature every time.
        methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self._differentiable = type(self.name, (torch.autograd.Function,), methods)

    def __call__(self, *arguments: Any) -> Any:
        if torch.compiler.is_compiling() or _observed(arguments):
            return self.registered(*arguments)
        if self._differentiable is not None and torch.is_grad_enabled() and _needs_gradient(arguments):
            return self._differentiable.apply(*arguments)  # type: ignore[no-untyped-call]
        return self.function(*arguments)


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Make a function, with its arguments' types, the operator `recon::name`."""
    return lambda function: Operator(name, function)


def _observed(arguments: tuple[Any, ...]) -> bool:
    """Whether a mode, a transform or a tracer is to see an operator, or a tensor that dispatches itself takes part."""
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active() or torch._C._is_tracing():
        return True
    # Loops, since a generator costs as much as what it looks at.
    for argument in arguments:
        if type(argument) is Tensor or type(argument) is torch.nn.Parameter:
            # Without values, with a sign that is still to be changed, or a batch of torch.autograd.grad's
            # is_grads_batched.
            if argument.is_meta or argument.is_neg() or torch._C._functorch.is_legacy_batchedtensor(argument):
                return True
        elif isinstance(argument, Tensor):
            return True
    return False


def _needs_gradient(arguments: tuple[Any, ...]) -> bool:
    return any(isinstance(argument, Tensor) and argument.requires_grad for argument in arguments)
