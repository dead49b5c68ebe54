"""The table that ties ATen operations to their definitions, and the decorators that fill it.

    DEFINITIONS[torch.ops.aten.gelu.default] is gelu_forward

A *definition* is a function with exactly the signature of an ATen overload, written from elementary
operations (pointwise arithmetic, reductions, views and indexing, gather and scatter, creation, casts, random
draws, one contraction). It has no data-dependent control flow and no autograd.Function inside, so the same
text runs eagerly, under a tracer with fake tensors and symbolic sizes, and as a decomposition that the
compiler lowers. Forward and backward operations both have one.

A *public function* (what `pynn.functional` exports) is a definition with its gradient attached
(`differentiable`), that shows itself as torch's own operation under a tracer (`traced_as`).
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd import forward_ad

from pynn.argument_kinds import check_of_kinds
from pynn.autocast import under_autocast
from pynn.batched_gradients import with_batched_gradients
from pynn.blocks import in_blocks
from pynn.constant_gradients import with_graph_to_inputs
from pynn.dtype_names import type_name
from pynn.first_argument import refusal_of_others
from pynn.mkldnn import of_dense_copies
from pynn.nested import ANSWERS, is_nested
from pynn.overrides import call_override, has_override, scripts_as

DEFINITIONS: dict[OpOverload, Callable[..., Any]] = {}

PUBLIC: dict[str, Callable[..., Any]] = {}
"""The public functions by name: every one decorated with `traced_as`."""

NARROW_DTYPES = (torch.float16, torch.bfloat16)

_dispatch_mode = torch._C._get_dispatch_mode
_PROXY = torch._C._TorchDispatchModeKey.PROXY
_is_dispatched_to = torch._C._dispatch_tls_is_dispatch_key_included
_PYTHON_DISPATCHER = torch._C.DispatchKey.PythonDispatcher
_pre_dispatch_modes = torch._ops.mode_stack_state_for_pre_dispatch()

WIDER = {**dict.fromkeys(NARROW_DTYPES, torch.float32), torch.complex32: torch.complex64}
"""What 16-bit numbers are computed in."""


def defines(*overloads: OpOverload) -> Callable:
    """Enter the decorated function in DEFINITIONS as the meaning of these ATen overloads."""

    def enter(definition: Callable) -> Callable:
        for overload in overloads:
            if overload in DEFINITIONS:
                raise ValueError(f"{overload} already has a definition: {DEFINITIONS[overload].__qualname__}")
            DEFINITIONS[overload] = definition
        return definition

    return enter


def is_traced() -> bool:
    """Whether torch.compile, torch.export, torch.jit.trace or make_fx records what is called, or AOTAutograd runs it
    once before, with Python's dispatcher on, to learn what the recording will be of.
    """
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return True
    if _pre_dispatch_modes.get(0) is not None:  # make_fx(pre_dispatch=True)
        return True
    if not torch._C._len_torch_dispatch_stack():
        return False
    return _dispatch_mode(_PROXY) is not None or _is_dispatched_to(_PYTHON_DISPATCHER)


def is_distributed(x: Tensor) -> bool:
    """Whether x is a DTensor, in whichever module of torch.distributed that is."""
    return type(x).__module__ == "torch.distributed.tensor"


def traced_as(torch_function: Callable, *, has_kernel: Callable[..., bool] | None = None) -> Callable:
    """Under a tracer (torch.compile, torch.export, torch.jit) call torch's own function, else the definition.

    has_kernel says for which arguments torch's function can run at all; for others the definition is traced.

    A tensor subclass with __torch_function__ and torch.fx are told torch's function too: see pynn.overrides.
    A quantised tensor goes there as well: the definitions are of numbers, not of integers with a scale. So does a
    distributed one: how it is sharded, and what that sends, is decided op by op, in a table that has ATen's.
    Of a nested tensor, the definition is of what it holds: see pynn.nested.

    The graph then holds the ATen operation that Inductor, ONNX export and this project's own compiler know.
    The decorated function keeps its name, signature and documentation; `__wrapped__` is the definition and
    `torch_function` the function of torch.nn.functional that it replaces.
    """

    def decorate(definition: Callable) -> Callable:
        refuse_others = refusal_of_others(definition, torch_function)
        checked_kinds = check_of_kinds(definition, torch_function)
        of_nested = ANSWERS.get(definition.__name__)

        @functools.wraps(definition)
        def function(*args: Any, **kwargs: Any) -> Any:
            if is_traced():
                if has_kernel is None or has_kernel(*args, **kwargs):
                    return torch_function(*args, **kwargs)
            elif has_override(args, kwargs):
                return call_override(function, torch_function, args, kwargs)
            if args and isinstance(args[0], Tensor):
                if args[0].is_mkldnn:
                    return of_dense_copies(function, args, kwargs)
                if args[0].is_quantized or is_distributed(args[0]):
                    return torch_function(*args, **kwargs)
                if of_nested is not None and is_nested(args[0]):
                    return of_nested(function, *args, **kwargs)
            if refuse_others is not None and not (args and isinstance(args[0], Tensor)):
                refuse_others(args, kwargs)
            if checked_kinds is not None and (len(args) > 1 or kwargs):
                args, kwargs = checked_kinds(args, kwargs)
            if torch._C._is_any_autocast_enabled():
                return under_autocast(definition, args, kwargs)
            return definition(*args, **kwargs)

        function.torch_function = torch_function  # type: ignore[attr-defined]
        scripts_as(function, torch_function)
        PUBLIC[definition.__name__] = function
        return function

    return decorate


def computes_in_float32(definition: Callable) -> Callable:
    """Cast 16-bit tensor arguments to float32, and the float32 results back, rounding once.

    If any floating-point argument is wider than 16 bits, the results stay as wide as computed.
    """

    @functools.wraps(definition)
    def computed(*args: Any, **kwargs: Any) -> Any:
        dtypes = {x.dtype for x in args if isinstance(x, Tensor) and x.is_floating_point()}
        if dtypes.isdisjoint(NARROW_DTYPES):
            return definition(*args, **kwargs)
        result = definition(*[widen(x) if isinstance(x, Tensor) else x for x in args], **kwargs)
        if len(dtypes) > 1:
            return result
        (narrow,) = dtypes
        if isinstance(result, tuple):
            return tuple(_narrow(x, narrow) for x in result)
        return _narrow(result, narrow)

    return computed


def widen(x: Tensor) -> Tensor:
    """float16 and bfloat16 to float32, complex32 to complex64; anything else unchanged."""
    return x.to(WIDER[x.dtype]) if x.dtype in WIDER else x


def _narrow(x: Any, dtype: torch.dtype) -> Any:
    return x.to(dtype) if isinstance(x, Tensor) and x.dtype == torch.float32 else x


class Function(torch.autograd.Function):
    """An autograd.Function for positional arguments only, with its vmap rule generated.

    torch's own `apply` inspects the signature of `forward` on every call, which costs several times the rest.
    """

    generate_vmap_rule = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "forward" in vars(cls):
            cls.forward = staticmethod(_with_results_of_its_own(cls.forward))
        if "backward" in vars(cls):
            cls.backward = staticmethod(with_batched_gradients(with_graph_to_inputs(cls.backward)))
        if "jvp" in vars(cls):
            cls.jvp = staticmethod(with_batched_gradients(_differentiable_forward(cls.jvp)))

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return cls.apply_transformed(*args)
        return super(torch.autograd.Function, cls).apply(*args)

    @classmethod
    def apply_transformed(cls, *args: Any) -> Any:
        """apply under a transform of torch.func."""
        return super().apply(*args)


def _with_results_of_its_own(forward: Callable) -> Callable:
    """A forward whose results may be written in place (conv2d, then ReLU(inplace=True)), as those of C++ may.

    torch refuses that for views. A view of a tensor made in `forward` is all that is left of it, and need not be
    known as one; a view of an input is copied.
    """

    @functools.wraps(forward)
    def computed(*inputs: Any) -> Any:
        outputs = forward(*inputs)
        if torch._C._are_functorch_transforms_active():
            return outputs
        if isinstance(outputs, tuple):
            return tuple(_owned(x, inputs) for x in outputs)
        return _owned(outputs, inputs)

    return computed


def _owned(output: Any, inputs: tuple) -> Any:
    if not isinstance(output, Tensor) or not output._is_view() or any(output is x for x in inputs):
        return output
    base = output._base
    for x in inputs:
        if isinstance(x, Tensor) and (base is x or (x._is_view() and base is x._base)):
            return output.clone()
    return torch.ops.aten._unsafe_view(output, output.shape)


def _differentiable_forward(jvp: Callable) -> Callable:
    """A jvp whose result carries the derivatives of outer forward-mode transforms.

    torch switches forward mode off in it, so that the derivative of a derivative, both in forward mode, would
    silently be 0. With the values of this level alone it may stay on.
    """

    @functools.wraps(jvp)
    def computed(ctx: Any, *tangents: Any) -> Any:
        if not torch._C._are_functorch_transforms_active():
            return jvp(ctx, *tangents)
        with forward_ad._set_fwd_grad_enabled(True):
            return jvp(_WithoutTangents(ctx), *tangents)

    return computed


class _WithoutTangents:
    """A context whose saved tensors are without the tangents of the innermost level."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx

    @property
    def saved_tensors(self) -> tuple:
        saved = self._ctx.saved_tensors
        return tuple(x if x is None else forward_ad.unpack_dual(x).primal for x in saved)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


class LinearInput(Function):
    """The identity. It saves its input, so that gradients that do not depend on it have a graph that leads there."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad

    @staticmethod
    def jvp(ctx: Any, dx: Tensor) -> Tensor:
        return dx.view_as(dx)


def linear_in(x: Tensor) -> Tensor:
    """x itself, for a function that is linear in it and has no Function of its own (see pynn.constant_gradients)."""
    if not (torch.is_grad_enabled() and x.requires_grad) or is_traced():
        return x
    return x if torch._C._are_functorch_transforms_active() else LinearInput.apply(x)


def differentiable(
    definition: Callable, *backwards: Callable, is_short: bool = False, keeps_result: bool = False
) -> Callable:
    """Give a pointwise definition its gradient formulas, one per leading tensor argument.

        definition(x1, ..., xn, *constants) -> y               all of one shape
        backwards[i](grad, x1, ..., xn, *constants) -> d y / d xi * grad

    is_short: of so few operations that running block by block saves nothing (see `pynn.blocks`)
    keeps_result: the formula takes y in the place of x1, which may then be written over, as C++ lets relu's

    Autograd then keeps the inputs only (as C++ does) and takes the value at a kink that C++ takes. The
    formulas are made of differentiable operations, so double backward works; the Jacobian of a pointwise
    function is diagonal, so they serve forward-mode AD as well.
    """
    count = len(backwards)
    evaluate, *formulas = (definition, *backwards) if is_short else map(in_blocks, (definition, *backwards))

    class Pointwise(Function):
        @classmethod
        def apply_transformed(cls, *inputs: Any) -> Tensor:
            """Scalars as vectors of one: torch.func.jvp makes tangents float64 where a number meets a scalar."""
            if any(x.dim() > 0 for x in inputs[:count]):
                return super().apply_transformed(*inputs)
            vectors = [x.unsqueeze(0) for x in inputs[:count]]
            return super().apply_transformed(*vectors, *inputs[count:]).squeeze(0)

        @staticmethod
        def forward(*inputs: Any) -> Tensor:
            return evaluate(*inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
            inputs = (output, *inputs[1:]) if keeps_result else inputs
            ctx.set_materialize_grads(False)  # no gradient in, none out, as in C++
            # constants that are tensors too: as attributes they would keep the wrappers of a vmap that has ended
            tensors = [x for x in inputs if isinstance(x, Tensor)]
            ctx.save_for_backward(*tensors)
            ctx.save_for_forward(*tensors)
            ctx.constants = [Tensor if isinstance(x, Tensor) else x for x in inputs]

        @staticmethod
        def backward(ctx: Any, grad: Tensor | None) -> tuple:
            if grad is None:
                return (None,) * len(ctx.constants)
            inputs = _with_tensors(ctx.constants, ctx.saved_tensors)
            gradients = [
                formula(grad, *inputs) if needed else None
                for formula, needed in zip(formulas, ctx.needs_input_grad, strict=False)
            ]
            return (*gradients, *[None] * (len(inputs) - count))

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Tensor:
            inputs = _with_tensors(ctx.constants, ctx.saved_tensors)
            terms = [
                formula(tangent, *inputs)
                for formula, tangent in zip(formulas, tangents, strict=False)
                if tangent is not None
            ]
            return functools.reduce(torch.add, terms)

    Pointwise.__name__ = Pointwise.__qualname__ = definition.__name__
    return Pointwise.apply


def _with_tensors(constants: list, tensors: tuple) -> list:
    """The inputs of a call: its constants, with the saved tensors where they say Tensor."""
    remaining = iter(tensors)
    return [next(remaining) if x is Tensor else x for x in constants]


def apply_in_place(function: Callable, input: Tensor, *constants: Any) -> Tensor:
    """input <- function(input, *constants); returns input.

    Where a gradient will be asked for, the function sees (and saves) a copy, because the values that its
    backward needs are about to be overwritten. Under a vmap, requires_grad does not tell: that of a gradient
    around it is hidden.
    """
    asks = input.requires_grad or torch._C._are_functorch_transforms_active()
    keeps_values = torch.is_grad_enabled() and asks
    return input.copy_(function(input.clone() if keeps_values else input, *constants))


def refuse_negative_slope(name: str) -> Callable:
    """The gradient formula of an in-place activation with a negative slope, which ATen has none for.

    ATen's backward sees the overwritten values alone, whose sign then does not tell that of the input.
    """

    def refuse(*_: Any) -> Tensor:
        raise RuntimeError(
            f"In-place {name} backward calculation is triggered with a negative slope which is not supported. This is "
            "caused by calling in-place forward function with a negative slope, please call out-of-place version "
            "instead."
        )

    return refuse


def can_read_values(x: Tensor) -> bool:
    """Whether a check may look at the elements: not those of meta and fake tensors, nor while tracing.

    Under vmap and grad transforms one tensor stands for many, so nothing can be read there either.
    """
    return not torch._C._are_functorch_transforms_active() and _has_values(x)


def can_read_through_gradients(x: Tensor) -> bool:
    """can_read_values; but also under transforms that only differentiate, where a tensor stands for itself."""
    functorch = torch._C._functorch
    levels = functorch.get_interpreter_stack() or ()
    if any(
        level.key() not in (functorch.TransformType.Grad, functorch.TransformType.Jvp) for level in levels
    ):
        return False
    while functorch.is_functorch_wrapped_tensor(x):
        x = functorch.get_unwrapped(x)
    return _has_values(x)


def _has_values(x: Tensor) -> bool:
    if x.is_meta or type(x) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer):
        return False
    return _dispatch_mode(_PROXY) is None


def require_floating_point(name: str, input: Tensor) -> None:
    """Raise what a CPU kernel of ATen raises when it has no such dtype."""
    if not input.is_floating_point():
        raise NotImplementedError(f"\"{name}\" not implemented for '{type_name(input)}'")


def require_no_gradient(function: str, **arguments: Tensor | None) -> None:
    """Raise what ATen raises for an argument that asks for a gradient where there is no formula for it."""
    for name, x in arguments.items():
        if x is not None and x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"The function '{function}' is not differentiable with respect to argument '{name}'. This input cannot "
                "have requires_grad True."
            )


def refuse_complex_gradient(function: str, *inputs: Tensor) -> None:
    """Raise what ATen raises where it has gradient formulas for real numbers only."""
    if (
        any(x.is_complex() for x in inputs)
        and torch.is_grad_enabled()
        and any(x.requires_grad for x in inputs)
    ):
        raise RuntimeError(
            f"{function} does not support automatic differentiation for outputs with complex dtype."
        )


def refuse_complex_half(kernel: str, *inputs: Tensor) -> None:
    """Raise what a CPU kernel of ATen raises that has none for 16-bit complex numbers."""
    for x in inputs:
        if x.dtype == torch.complex32 and x.is_cpu:
            raise NotImplementedError(f"\"{kernel}\" not implemented for '{type_name(x)}'")
