"""The Transformer of "Attention Is All You Need": layers, stacks of layers, the whole."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.init import xavier_uniform_

from pynn.construction import init_module
from pynn.modules._nested import gives_zeros_for_padding, layer_gives_nan_without_keys, sequence_by_sequence

from .activation import relu
from .attention_masks import canonical_mask, dtype_of
from .container import ModuleList
from .dropout import Dropout
from .linear import Linear
from .module import Module
from .multihead_attention import MultiheadAttention
from .normalization import LayerNorm
from .transformer_parts import (
    activation_code,
    activation_function,
    additive_causal_mask,
    attend,
    is_causal_mask,
    seq_length,
    why_not_nested,
)

__all__ = [
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
]


class TransformerEncoderLayer(torch.nn.TransformerEncoderLayer):
    """Self-attention, then a two-layer network, each around a residual connection.

        x = norm1(x + attention(x))          norm_first: x = x + attention(norm1(x))
        x = norm2(x + feed_forward(x))                   x = x + feed_forward(norm2(x))

    Args:    d_model: width; nhead: heads; dim_feedforward: width of the hidden layer
             dropout: share set to 0 in the attention weights, the hidden layer and both branches
             activation: "relu", "gelu" or any function of a tensor
             layer_norm_eps, bias: passed on to LayerNorm and Linear
             batch_first: [batch, seq, d_model] in place of [seq, batch, d_model]
             norm_first: normalise what goes into a branch, not the sum
    Shape:   src: [seq, batch, d_model]   src_mask: [seq, seq] or [batch * nhead, seq, seq]
             src_key_padding_mask: [batch, seq]   returns: as src
    Source:  torch.nn.TransformerEncoderLayer. Differs from torch in: evaluation takes the same path as
             training
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device=None,
        dtype=None,
    ) -> None:
        factory = {"device": device, "dtype": dtype}
        init_module(TransformerEncoderLayer, self)
        self.self_attn = MultiheadAttention(
            d_model, nhead, dropout=dropout, bias=bias, batch_first=batch_first, **factory
        )
        self.linear1 = Linear(d_model, dim_feedforward, bias=bias, **factory)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias=bias, **factory)
        self.norm_first = norm_first
        self.norm1 = LayerNorm(d_model, eps=layer_norm_eps, bias=bias, **factory)
        self.norm2 = LayerNorm(d_model, eps=layer_norm_eps, bias=bias, **factory)
        self.dropout1 = Dropout(dropout)
        self.dropout2 = Dropout(dropout)
        self.activation = activation_function(activation)
        self.activation_relu_or_gelu = activation_code(self.activation)

    def __setstate__(self, state):
        Module.__setstate__(self, state)
        if not hasattr(self, "activation"):
            self.activation = relu

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        if src.is_nested:
            return sequence_by_sequence(self.self_attn, self.forward, src, src_mask, src_key_padding_mask)
        src_key_padding_mask = canonical_mask(
            src_key_padding_mask, "src_key_padding_mask", dtype_of(src_mask), "src_mask", src.dtype
        )
        src_mask = canonical_mask(src_mask, "src_mask", None, "", src.dtype, check_other=False)
        masks = (src_mask, src_key_padding_mask, is_causal)
        x = src
        if self.norm_first:
            x = x + self._sa_block(self.norm1(x), *masks)
            return x + self._ff_block(self.norm2(x))
        x = self.norm1(x + self._sa_block(x, *masks))
        return self.norm2(x + self._ff_block(x))

    def _sa_block(
        self, x: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None, is_causal: bool = False
    ) -> Tensor:
        """The self-attention branch."""
        masks = attn_mask, key_padding_mask
        takes_weights = layer_gives_nan_without_keys(self, x, *masks)
        return self.dropout1(attend(self.self_attn, x, x, *masks, is_causal, takes_weights))

    def _ff_block(self, x: Tensor) -> Tensor:
        """The two-layer network applied to every position."""
        return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))


class TransformerDecoderLayer(torch.nn.TransformerDecoderLayer):
    """Self-attention, attention to the encoder's output, then a two-layer network.

        x = norm1(x + attention(x))                norm_first: x = x + attention(norm1(x))
        x = norm2(x + attention(x, memory))                    x = x + attention(norm2(x), memory)
        x = norm3(x + feed_forward(x))                         x = x + feed_forward(norm3(x))

    Args:    as `TransformerEncoderLayer`'s
    Shape:   tgt: [queries, batch, d_model]   memory: [keys, batch, d_model]   returns: as tgt
             tgt_mask: [queries, queries]   memory_mask: [queries, keys]   (or with batch * nhead in front)
             tgt_key_padding_mask: [batch, queries]   memory_key_padding_mask: [batch, keys]
    Source:  torch.nn.TransformerDecoderLayer
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device=None,
        dtype=None,
    ) -> None:
        factory = {"device": device, "dtype": dtype}
        attention = {"dropout": dropout, "batch_first": batch_first, "bias": bias, **factory}
        init_module(TransformerDecoderLayer, self)
        self.self_attn = MultiheadAttention(d_model, nhead, **attention)
        self.multihead_attn = MultiheadAttention(d_model, nhead, **attention)
        self.linear1 = Linear(d_model, dim_feedforward, bias=bias, **factory)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias=bias, **factory)
        self.norm_first = norm_first
        self.norm1 = LayerNorm(d_model, eps=layer_norm_eps, bias=bias, **factory)
        self.norm2 = LayerNorm(d_model, eps=layer_norm_eps, bias=bias, **factory)
        self.norm3 = LayerNorm(d_model, eps=layer_norm_eps, bias=bias, **factory)
        self.dropout1 = Dropout(dropout)
        self.dropout2 = Dropout(dropout)
        self.dropout3 = Dropout(dropout)
        self.activation = activation_function(activation)

    def __setstate__(self, state):
        if "activation" not in state:
            state["activation"] = relu
        Module.__setstate__(self, state)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        own_masks = (tgt_mask, tgt_key_padding_mask, tgt_is_causal)
        memory_masks = (memory_mask, memory_key_padding_mask, memory_is_causal)
        x = tgt
        if self.norm_first:
            x = x + self._sa_block(self.norm1(x), *own_masks)
            x = x + self._mha_block(self.norm2(x), memory, *memory_masks)
            return x + self._ff_block(self.norm3(x))
        x = self.norm1(x + self._sa_block(x, *own_masks))
        x = self.norm2(x + self._mha_block(x, memory, *memory_masks))
        return self.norm3(x + self._ff_block(x))

    def _sa_block(
        self, x: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None, is_causal: bool = False
    ) -> Tensor:
        """The self-attention branch."""
        return self.dropout1(attend(self.self_attn, x, x, attn_mask, key_padding_mask, is_causal))

    def _mha_block(
        self,
        x: Tensor,
        mem: Tensor,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        is_causal: bool = False,
    ) -> Tensor:
        """The branch that attends to the encoder's output."""
        return self.dropout2(attend(self.multihead_attn, x, mem, attn_mask, key_padding_mask, is_causal))

    def _ff_block(self, x: Tensor) -> Tensor:
        """The two-layer network applied to every position."""
        return self.dropout3(self.linear2(self.dropout(self.activation(self.linear1(x)))))


class TransformerEncoder(torch.nn.TransformerEncoder):
    """num_layers copies of an encoder layer, one after the other, then an optional normalisation.

    Args:    encoder_layer: the layer to copy (parameters included)
             norm: applied to the output
             enable_nested_tensor: in evaluation without gradients, give 0 where src_key_padding_mask hides
             mask_check: do so only where the padding lies at the end of each sequence
    Shape:   src: [seq, batch, d_model] as the layers take it, or nested   returns: as src
    Source:  torch.nn.TransformerEncoder, whose fast path leaves the padding out of nested tensors and fills
             it with 0 before the final norm
    """

    def __init__(
        self,
        encoder_layer: "TransformerEncoderLayer",
        num_layers: int,
        norm: Module | None = None,
        enable_nested_tensor: bool = True,
        mask_check: bool = True,
    ) -> None:
        init_module(TransformerEncoder, self)
        self.layers = copies(encoder_layer, num_layers)
        self.num_layers = num_layers
        self.norm = norm
        self.enable_nested_tensor = enable_nested_tensor
        self.use_nested_tensor = enable_nested_tensor
        self.mask_check = mask_check
        obstacle = why_not_nested(encoder_layer)
        if enable_nested_tensor and obstacle:
            self.use_nested_tensor = False
            warnings.warn(
                f"enable_nested_tensor is True, but self.use_nested_tensor is False because {obstacle}",
                stacklevel=2,
            )

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        if src.is_nested:
            return sequence_by_sequence(
                self.layers[0].self_attn, self.forward, src, mask, src_key_padding_mask
            )
        src_key_padding_mask = canonical_mask(
            src_key_padding_mask, "src_key_padding_mask", dtype_of(mask), "mask", src.dtype
        )
        mask = canonical_mask(mask, "mask", None, "", src.dtype, check_other=False)
        is_causal = is_causal_mask(mask, is_causal, seq_length(src, self.layers[0].self_attn.batch_first))
        output = src
        for layer in self.layers:
            output = layer(
                output, src_mask=mask, is_causal=is_causal, src_key_padding_mask=src_key_padding_mask
            )
        if gives_zeros_for_padding(self, src, mask, src_key_padding_mask):
            output = torch.where(src_key_padding_mask.unsqueeze(-1) == 0, output, 0.0)
        return output if self.norm is None else self.norm(output)


class TransformerDecoder(torch.nn.TransformerDecoder):
    """num_layers copies of a decoder layer, one after the other, then an optional normalisation.

    Args:    decoder_layer: the layer to copy (parameters included)
             norm: applied to the output
    Shape:   as TransformerDecoderLayer
    Source:  torch.nn.TransformerDecoder
    """

    def __init__(
        self, decoder_layer: "TransformerDecoderLayer", num_layers: int, norm: Module | None = None
    ) -> None:
        init_module(TransformerDecoder, self)
        self.layers = copies(decoder_layer, num_layers)
        self.num_layers = num_layers
        self.norm = norm

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        length = seq_length(tgt, self.layers[0].self_attn.batch_first)
        tgt_is_causal = is_causal_mask(tgt_mask, tgt_is_causal, length)
        output = tgt
        for layer in self.layers:
            output = layer(
                output,
                memory,
                tgt_mask=tgt_mask,
                memory_mask=memory_mask,
                tgt_key_padding_mask=tgt_key_padding_mask,
                memory_key_padding_mask=memory_key_padding_mask,
                tgt_is_causal=tgt_is_causal,
                memory_is_causal=memory_is_causal,
            )
        return output if self.norm is None else self.norm(output)


class Transformer(torch.nn.Transformer):
    """An encoder of the source and a decoder of the target that attends to it.

    Args:    num_encoder_layers, num_decoder_layers: depth of either
             custom_encoder, custom_decoder: modules to use in their place
             the others: as `TransformerEncoderLayer`'s
    Shape:   src: [keys, batch, d_model]   tgt: [queries, batch, d_model]   returns: as tgt
             masks: as TransformerDecoderLayer, with src_mask [keys, keys]
    Raises:  RuntimeError when the batch sizes or the widths of src and tgt do not fit
    Source:  Vaswani et al. 2017, "Attention Is All You Need"; torch.nn.Transformer
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = F.relu,
        custom_encoder: Any | None = None,
        custom_decoder: Any | None = None,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device=None,
        dtype=None,
    ) -> None:
        factory = {"device": device, "dtype": dtype}
        layer_options = (nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first)
        init_module(Transformer, self)
        if custom_encoder is not None:
            self.encoder = custom_encoder
        else:
            encoder_layer = TransformerEncoderLayer(d_model, *layer_options, bias, **factory)
            encoder_norm = LayerNorm(d_model, eps=layer_norm_eps, bias=bias, **factory)
            self.encoder = TransformerEncoder(encoder_layer, num_encoder_layers, encoder_norm)
        if custom_decoder is not None:
            self.decoder = custom_decoder
        else:
            decoder_layer = TransformerDecoderLayer(d_model, *layer_options, bias, **factory)
            decoder_norm = LayerNorm(d_model, eps=layer_norm_eps, bias=bias, **factory)
            self.decoder = TransformerDecoder(decoder_layer, num_decoder_layers, decoder_norm)
        self._reset_parameters()
        self.d_model = d_model
        self.nhead = nhead
        self.batch_first = batch_first

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        batch_axis = 0 if self.batch_first else 1
        if src.dim() == 3 and src.size(batch_axis) != tgt.size(batch_axis):
            raise RuntimeError("the batch number of src and tgt must be equal")
        if src.size(-1) != self.d_model or tgt.size(-1) != self.d_model:
            raise RuntimeError("the feature number of src and tgt must be equal to d_model")
        memory = self.encoder(
            src, mask=src_mask, src_key_padding_mask=src_key_padding_mask, is_causal=src_is_causal
        )
        return self.decoder(
            tgt,
            memory,
            tgt_mask=tgt_mask,
            memory_mask=memory_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask,
            tgt_is_causal=tgt_is_causal,
            memory_is_causal=memory_is_causal,
        )

    @staticmethod
    def generate_square_subsequent_mask(
        sz: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """The causal mask as a float mask: 0 up to the diagonal, -inf above.  returns: [sz, sz]"""
        return additive_causal_mask(sz, device, dtype)

    def _reset_parameters(self) -> None:
        for parameter in self.parameters():
            if parameter.dim() > 1:
                xavier_uniform_(parameter)


def copies(layer: Module, count: int) -> ModuleList:
    """`count` deep copies of a layer, parameters included."""
    return ModuleList([copy.deepcopy(layer) for _ in range(count)])
