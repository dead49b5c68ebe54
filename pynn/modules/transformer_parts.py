"""What the layers of a Transformer share: the attention branch, the activation, causal masks."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pynn.definitions import defines, is_traced
from pynn.modules._rectifiers import relu_forward
from pynn.modules._smooth_activations import gelu_forward

from .activation import gelu, relu
from .attention import causal_mask
from .linear import linear
from .module import Module
from .multihead_attention import native_multi_head_attention
from .normalization import layer_norm_forward

aten = torch.ops.aten


def attend(
    attention: Module,
    x: Tensor,
    memory: Tensor,
    attn_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    is_causal: bool,
    need_weights: bool = False,
) -> Tensor:
    """The output of a MultiheadAttention whose keys and values are both `memory`."""
    return attention(
        x,
        memory,
        memory,
        attn_mask=attn_mask,
        key_padding_mask=key_padding_mask,
        need_weights=need_weights,
        is_causal=is_causal,
    )[0]


def activation_function(activation: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """ "relu" and "gelu", by name or as torch's functions, become pynn's; anything else stays as it is."""
    if isinstance(activation, str) and activation not in ("relu", "gelu"):
        raise RuntimeError(f"activation should be relu/gelu, not {activation}")
    if activation in ("relu", relu.torch_function):
        return relu
    if activation in ("gelu", gelu.torch_function):
        return gelu
    return activation


def activation_code(activation: Callable[[Tensor], Tensor]) -> int:
    """1 for relu, 2 for gelu, 0 for anything else: what torch keeps as activation_relu_or_gelu."""
    if activation is relu or isinstance(activation, torch.nn.ReLU):
        return 1
    return 2 if activation is gelu or isinstance(activation, torch.nn.GELU) else 0


def why_not_nested(layer: Module) -> str:
    """Why torch's nested tensors would not do for this encoder layer ("" if they would), in its words."""
    if not isinstance(layer, torch.nn.TransformerEncoderLayer):
        return "encoder_layer was not TransformerEncoderLayer"
    attention = layer.self_attn
    obstacles = {
        "norm_first was True": layer.norm_first,
        "self_attn.batch_first was not True(use batch_first for better inference performance)": (
            not attention.batch_first
        ),
        "self_attn._qkv_same_embed_dim was not True": not attention._qkv_same_embed_dim,
        "self_attn was passed bias=False": attention.in_proj_bias is None,
        "activation_relu_or_gelu was not True": not layer.activation_relu_or_gelu,
        "norm1.eps was not equal to encoder_layer.norm2.eps": layer.norm1.eps != layer.norm2.eps,
        "self_attn.num_heads is odd": attention.num_heads % 2 == 1,
    }
    return next((f"encoder_layer.{obstacle}" for obstacle, present in obstacles.items() if present), "")


def additive_causal_mask(length: int, device: torch.device | None, dtype: torch.dtype | None) -> Tensor:
    """0 up to the diagonal, -inf above.  returns: [length, length]"""
    zero = torch.zeros((), device=device, dtype=dtype)
    return torch.where(causal_mask(length, length, zero.device), zero, -math.inf)


def is_causal_mask(mask: Tensor | None, is_causal: bool | None, length: int | None) -> bool:
    """The caller's hint, or else whether the mask is the causal one.

    Under a tracer, or with no data, a mask is not looked into: with the mask itself in place the result is
    the same.
    """
    if is_causal is not None or mask is None or mask.is_meta or is_traced():
        return is_causal is True
    length = mask.size(-2) if length is None else length
    if mask.size() != (length, length):
        return False
    return bool((mask == additive_causal_mask(length, mask.device, mask.dtype)).all())


def seq_length(x: Tensor, batch_first: bool) -> int:
    """The length of the sequence axis, which comes first unless x is batched and batch_first."""
    return x.size(1 if batch_first and x.dim() == 3 else 0)


@defines(aten._transformer_encoder_layer_fwd.default)
def transformer_encoder_layer_forward(
    src: Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Tensor,
    norm_bias_1: Tensor,
    norm_weight_2: Tensor,
    norm_bias_2: Tensor,
    ffn_weight_1: Tensor,
    ffn_bias_1: Tensor,
    ffn_weight_2: Tensor,
    ffn_bias_2: Tensor,
    mask: Tensor | None = None,
    mask_type: int | None = None,
    *,
    attend: Callable[..., Tensor] | None = None,
) -> Tensor:
    """An encoder layer as torch.nn.TransformerEncoderLayer runs it in evaluation, batch first.

        x = norm1(x + attention(x))          norm_first: x = x + attention(norm1(x))
        x = norm2(x + feed_forward(x))                   x = x + feed_forward(norm2(x))

    Args:    mask, mask_type, attend: see native_multi_head_attention
    Shape:   src: [batch, seq, embed_dim]   returns: as src
    """

    def attention(x: Tensor) -> Tensor:
        projections = (qkv_weight, qkv_bias, proj_weight, proj_bias)
        return native_multi_head_attention(
            x, x, x, embed_dim, num_heads, *projections, mask, False, mask_type=mask_type, attend=attend
        )[0]

    def feed_forward(x: Tensor) -> Tensor:
        hidden = linear(x, ffn_weight_1, ffn_bias_1)
        hidden = gelu_forward(hidden) if use_gelu else relu_forward(hidden)
        return linear(hidden, ffn_weight_2, ffn_bias_2)

    def norm1(x: Tensor) -> Tensor:
        return layer_norm_forward(x, [embed_dim], norm_weight_1, norm_bias_1, eps)[0]

    def norm2(x: Tensor) -> Tensor:
        return layer_norm_forward(x, [embed_dim], norm_weight_2, norm_bias_2, eps)[0]

    if norm_first:
        x = src + attention(norm1(src))
        return x + feed_forward(norm2(x))
    x = norm1(src + attention(src))
    return norm2(x + feed_forward(x))
