"""What kind of thing each argument must be: the calls of torch's C++ functions, whose parser refuses others.

A line of CALLS is a call that torch's function of that name makes, in C++'s names and order: the parser names the
place of what it refuses, unless it was passed by keyword. Left out (_) are the first argument, for which see
`pynn.first_argument`, and what torch's Python looks at before.

    kind?         None will do               kind theirs=ours   a name that differs in torch's Python
    Number        becomes what the kernel computes in, Value the dtype of the first argument, Double a float64
    function!     has overloads: the parser then only says that none of them fits
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from pynn.argument_types import KINDS, is_int, refuse, require_range

CALLS = """
affine_grid: affine_grid_generator(_, _, bool? align_corners)
alpha_dropout: alpha_dropout(_, _, bool train=training)
avg_pool1d: avg_pool1d(_, sizes kernel_size, sizes? stride, sizes padding, bool ceil_mode,
    bool count_include_pad)
avg_pool2d: avg_pool2d(_, sizes kernel_size, sizes? stride, sizes padding, bool ceil_mode,
    bool count_include_pad, int? divisor_override)
avg_pool3d: avg_pool3d(_, sizes kernel_size, sizes? stride, sizes padding, bool ceil_mode,
    bool count_include_pad, int? divisor_override)
batch_norm: batch_norm(_, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, bool training,
    float momentum)
bilinear: bilinear(_, Tensor input2, Tensor weight, Tensor? bias)
binary_cross_entropy_with_logits: binary_cross_entropy_with_logits(_, _, Tensor? weight, Tensor? pos_weight)
celu: celu(_, Number alpha)
celu_: celu_(_, Number alpha)
channel_shuffle: channel_shuffle(_, size groups)
conv_tbc: conv_tbc(_, Tensor weight, Tensor bias, int pad)
conv1d: conv1d!(_, Tensor weight, Tensor? bias, sizes stride, _, sizes dilation, size groups)
conv2d: conv2d!(_, Tensor weight, Tensor? bias, sizes stride, _, sizes dilation, size groups)
conv3d: conv3d!(_, Tensor weight, Tensor? bias, sizes stride, _, sizes dilation, size groups)
conv_transpose1d: conv_transpose1d(_, Tensor weight, Tensor? bias, sizes stride, sizes padding,
    sizes output_padding, size groups, sizes dilation)
conv_transpose2d: conv_transpose2d(_, Tensor weight, Tensor? bias, sizes stride, sizes padding,
    sizes output_padding, size groups, sizes dilation)
conv_transpose3d: conv_transpose3d(_, Tensor weight, Tensor? bias, sizes stride, sizes padding,
    sizes output_padding, size groups, sizes dilation)
cosine_embedding_loss: cosine_embedding_loss(_, Tensor input2, Tensor target, float margin)
cosine_similarity: cosine_similarity(_, Tensor x2, int dim, float eps)
dropout: dropout(_, _, bool train=training)
dropout1d: feature_dropout(_, _, bool train=training)
dropout2d: feature_dropout(_, _, bool train=training)
dropout3d: feature_dropout(_, _, bool train=training)
elu: elu(_, Number alpha)
elu_: elu_(_, Number alpha)
embedding: embedding_renorm_(_, _, float? max_norm)
embedding: embedding(Tensor weight, _, _, bool scale_grad_by_freq, bool sparse)
embedding_bag: embedding_renorm_(_, _, float? max_norm)
embedding_bag: embedding_bag(_, _, _, bool scale_grad_by_freq, _, bool sparse, _, _, int? padding_idx)
feature_alpha_dropout: feature_alpha_dropout(_, _, bool train=training)
fold: col2im(_, pair output_size, pair kernel_size, pair dilation, pair padding, pair stride)
gelu: gelu(_, *, str approximate)
glu: glu(_, int dim)
grid_sample: grid_sampler(_, Tensor grid, _, _, bool? align_corners)
grouped_mm: _grouped_mm(_, Tensor mat2=mat_b, *, Tensor? offs, Tensor? bias, dtype? out_dtype)
gumbel_softmax: softmax(int dim)
hardshrink: hardshrink(_, Value lambd)
hardtanh_: hardtanh_(_, Value min_val, Value max_val)
hinge_embedding_loss: hinge_embedding_loss(_, Tensor target, float margin)
huber_loss: huber_loss(_, _, _, float delta)
instance_norm: instance_norm(_, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var,
    bool use_input_stats, float momentum, float eps)
kl_div: kl_div(_, Tensor target, _, *, bool log_target)
layer_norm: layer_norm(_, ints normalized_shape, Tensor? weight, Tensor? bias, float eps)
leaky_relu: leaky_relu(_, Number negative_slope)
leaky_relu_: leaky_relu_(_, Number negative_slope)
linear: linear(_, Tensor weight, Tensor? bias)
log_softmax: log_softmax(int? dim, *, dtype? dtype)
margin_ranking_loss: margin_ranking_loss(_, _, _, float margin)
max_pool1d_with_indices: max_pool1d_with_indices(_, _, _, _, _, bool ceil_mode)
max_pool2d_with_indices: max_pool2d_with_indices(_, _, _, _, _, bool ceil_mode)
max_pool3d_with_indices: max_pool3d_with_indices(_, _, _, _, _, bool ceil_mode)
max_unpool2d: max_unpool2d(_, Tensor indices)
max_unpool3d: max_unpool3d(_, Tensor indices)
multi_margin_loss: multi_margin_loss(_, Tensor target, _, Number margin)
multilabel_margin_loss: multilabel_margin_loss(_, Tensor target)
native_channel_shuffle: native_channel_shuffle(_, size groups)
normalize: linalg_vector_norm(_, Number? ord=p, sizes? dim)
one_hot: one_hot(_, int num_classes)
pad: pad(_, ints pad, str mode, float? value)
pairwise_distance: pairwise_distance(_, Tensor x2, float p, float eps, bool keepdim)
pdist: pdist(_, float p)
pixel_shuffle: pixel_shuffle(_, int upscale_factor)
pixel_unshuffle: pixel_unshuffle(_, int downscale_factor)
poisson_nll_loss: poisson_nll_loss(_, Tensor target, bool log_input, bool full, float eps)
prelu: prelu(_, Tensor weight)
rms_norm: rms_norm(_, ints normalized_shape, Tensor? weight, float? eps)
rrelu: rrelu(_, Double lower, Double upper, bool training)
rrelu_: rrelu_(_, Double lower, Double upper, bool training)
scaled_dot_product_attention: scaled_dot_product_attention(_, Tensor key, Tensor value, Tensor? attn_mask,
    float dropout_p, bool is_causal, *, float? scale, bool enable_gqa)
smooth_l1_loss: smooth_l1_loss(_, _, _, float beta)
soft_margin_loss: soft_margin_loss(_, Tensor target)
softmax: softmax(int? dim, *, dtype? dtype)
softmin: softmax(int? dim, *, dtype? dtype)
softplus: softplus(_, Number beta, Number threshold)
softshrink: softshrink(_, Double lambd)
threshold: threshold(_, Number threshold, Value value)
threshold_: threshold_(_, Number threshold, Value value)
triplet_margin_loss: triplet_margin_loss(_, Tensor positive, Tensor negative, _, float p, float eps, bool swap)
unfold: im2col(_, pair kernel_size, pair dilation, pair padding, pair stride)
"""


class Argument(NamedTuple):
    """
    name: C++'s name   keyword: the name in Python   kind: of KINDS   position: in C++'s call, from 1; None where torch
    passes it by keyword
    """

    name: str
    keyword: str
    kind: str
    is_optional: bool
    position: int | None


class Call(NamedTuple):
    function: str
    arguments: list[Argument]


def parsed(calls: str) -> dict[str, list[Call]]:
    """The calls that a public function makes, by its name."""
    table: dict[str, list[Call]] = {}
    for line in calls.replace("\n    ", " ").strip().splitlines():
        public, call = line.split(": ")
        function, _, listed = call.removesuffix(")").partition("(")
        arguments, is_keyword = [], False
        for position, text in enumerate(listed.split(", "), start=1):
            if text == "*":
                is_keyword = True
            elif text != "_":
                kind, names = text.split()
                name, _, keyword = names.partition("=")
                place = None if is_keyword else position
                arguments.append(
                    Argument(name, keyword or name, kind.removesuffix("?"), kind.endswith("?"), place)
                )
        table.setdefault(public, []).append(Call(function, arguments))
    return table


ARGUMENTS = parsed(CALLS)

USUAL_TYPES: dict[str, set[type]] = {
    **{kind: {float, int, bool} for kind in ("Double", "Number", "Value", "float")},
    "Tensor": {Tensor, Parameter},
    "bool": {bool},
    "int": {int},
    "size": {int},
    "sizes": {int},
    "str": {str},
}


def check_of_kinds(
    definition: Callable, torch_function: Callable
) -> Callable[[tuple, dict], tuple[tuple, dict]] | None:
    """A check of the arguments after the first of this definition's public function; None without a line here.

    It returns them, with numbers that came as numpy's or as tensors turned into Python's, as C++ does: arithmetic with
    those would raise the result to their dtype.
    """
    if definition.__name__ not in ARGUMENTS:
        return None
    names = list(inspect.signature(definition).parameters)
    checks = [
        (names.index(argument.keyword), argument.keyword, usual_types(argument), call.function, argument)
        for call in ARGUMENTS[definition.__name__]
        for argument in call.arguments
    ]
    # torch's functions written in Python pass everything on by position, others what the caller did
    is_python = inspect.isfunction(torch_function)

    def checked_kinds(args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        for index, keyword, usual, function, argument in checks:
            if index < len(args):
                value = args[index]
            elif keyword in kwargs:
                value = kwargs[keyword]
            else:
                continue
            if type(value) not in usual and not KINDS[argument.kind](value):
                if function.endswith("!") and not (argument.kind == "sizes" and is_int_list(value)):
                    raise no_overload_fits(function[:-1], args, kwargs)
                function = function.removesuffix("!") + ("_" if kwargs.get("inplace") else "")
                position = argument.position if is_python or index < len(args) else None
                refuse(function, position, argument.name, argument.kind, value)
            if argument.kind in NUMBERS and type(value) not in usual and hasattr(value, "item"):
                value = value.item()
                if index < len(args):
                    args = (*args[:index], value, *args[index + 1 :])
                else:
                    kwargs = {**kwargs, keyword: value}
            if argument.kind in ("Double", "Number", "Value") and may_not_fit(value):
                require_range(value, scalar_type(argument.kind, args))
        return args, kwargs

    return checked_kinds


NUMBERS = ("Double", "Number", "Value", "float", "int", "size")


def may_not_fit(value: Any) -> bool:
    """Into the narrowest floating-point numbers."""
    return isinstance(value, complex) or (isinstance(value, (float, int)) and abs(value) > 65504)


def scalar_type(kind: str, args: tuple) -> torch.dtype:
    """What C++ turns a number of this kind into, beside the first argument."""
    if kind == "Double" or not args or not args[0].is_floating_point():
        return torch.float64
    return args[0].dtype if kind == "Value" else torch.promote_types(args[0].dtype, torch.float32)


def usual_types(argument: Argument) -> frozenset[type]:
    """Types of which every value will do: nearly all that come."""
    optional = {type(None)} if argument.is_optional else set()
    return frozenset(USUAL_TYPES.get(argument.kind, set()) | optional)


def is_int_list(value: Any) -> bool:
    """Whether an overload of lists is chosen, which shows at the first element."""
    return isinstance(value, (tuple, list)) and len(value) > 0 and is_int(value[0])


def no_overload_fits(function: str, args: tuple, kwargs: dict[str, Any]) -> TypeError:
    got = [type(x).__name__ for x in args] + [f"{name}={type(x).__name__}" for name, x in kwargs.items()]
    return TypeError(f"{function}() received an invalid combination of arguments - got ({', '.join(got)})")
