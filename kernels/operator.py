"""Operators of `torch.library` that cost a small call no more than their own arithmetic.

The dispatcher, with the checks and wrappers of a Python operator, takes 40 microseconds a call, as long as all pairs of
two small clouds. It is needed where something looks on that has to see one operator: the compiler, a tracer, a mode, a
transform of torch.func, a tensor that is more than one. Elsewhere the operator's function is called itself.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor
from torch.library import custom_op


class Operator:
    """A function of tensors under the name `recon::...`; called, it gives the same in either way.

    `function` is what it does, `registered` torch's operator of it.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self.function = function
        self.registered = custom_op(f"recon::{name}", function, mutates_args=())
        self._differentiable: Callable[..., Any] | None = None

    def register_fake(self, fake: Callable[..., Any]) -> None:
        """Shapes and dtypes of what it returns, from arguments without values."""
        self.registered.register_fake(fake)

    def register_autograd(self, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
        """Its gradient, as in `torch.library.register_autograd`, but that `backward` has to take the gradients of all
        results, or of the floating ones alone.
        """
        self.registered.register_autograd(backward, setup_context=setup_context)
        self._differentiable = _differentiable(self.name, self.function, backward, setup_context)

    def __call__(self, *arguments: Any) -> Any:
        if observed(arguments):
            return self.registered(*arguments)
        if self._differentiable is not None and needs_gradient(arguments):
            return self._differentiable(*arguments)
        return self.function(*arguments)


def _differentiable(
    name: str, function: Callable[..., Any], backward: Callable[..., Any], setup_context: Callable[..., None]
) -> Callable[..., Any]:
    """The function under an `autograd.Function`, for arguments of which one needs a gradient.

    Results that are integers go round it: torch would wrap each, and on the way back make zeros for it.
    """

    def forward(ctx: Any, *arguments: Any) -> Any:
        output = function(*arguments)
        setup_context(ctx, arguments, output)
        if isinstance(output, Tensor):
            return output
        ctx.results = [None if each.is_floating_point() else each for each in output]
        return tuple([each for each in output if each.is_floating_point()])

    # Not with setup_context as a method: `apply` would look up forward's signature every time.
    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    apply = bare_apply(type(name, (torch.autograd.Function,), methods))

    def call(*arguments: Any) -> Any:
        found = apply(*arguments)
        if isinstance(found, Tensor):
            return found
        left, node = iter(found), found[0].grad_fn
        results, node.results = node.results, None
        return tuple([next(left) if each is None else each for each in results])

    return call


def bare_apply(made: type[torch.autograd.Function]) -> Callable[..., Any]:
    """The `apply` below that of the class, which prepares for torch.func; for plain arguments, none of them named."""
    apply: Callable[..., Any] = super(torch.autograd.Function, made).apply  # type: ignore[misc]
    return apply


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Make a function, with its arguments' types, the operator `recon::name`."""
    return lambda function: Operator(name, function)


_PLAIN = {Tensor, torch.nn.Parameter}


def observed(arguments: tuple[Any, ...]) -> bool:
    """Whether the compiler, a mode, a transform or a tracer is to see an operator, or a tensor dispatches itself."""
    if torch.compiler.is_compiling():
        return True
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active() or torch._C._is_tracing():
        return True
    # Loops, since a generator costs as much as what it looks at.
    for argument in arguments:
        if type(argument) in _PLAIN:
            # Without values, with a sign still to be changed, a batch of torch.autograd.grad's is_grads_batched, or
            # left over from a transform.
            if (
                argument.is_meta
                or argument.is_neg()
                or is_legacy_batchedtensor(argument)
                or is_functorch_wrapped_tensor(argument)
            ):
                return True
        elif isinstance(argument, Tensor):
            return True
    return False


def needs_gradient(arguments: tuple[Any, ...]) -> bool:
    """Whether a result is to have one."""
    return torch.is_grad_enabled() and True in [
        isinstance(argument, Tensor) and argument.requires_grad for argument in arguments
    ]
