"""Recurrent layers and cells: a loop over time, one matrix product of the state a step."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import rnn as torch_rnn
from torch.nn.utils.rnn import PackedSequence

from pynn.autocast import is_autocast_on
from pynn.definitions import NARROW_DTYPES, is_traced, type_name, widen
from pynn.modules._recurrence import STEPS, State, Weights, affine, run_layers
from pynn.overrides import is_taken_over

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNBase",
    "RNNCell",
    "RNNCellBase",
]

apply_permutation = torch_rnn.apply_permutation


def outside_of_dynamo(method: Callable) -> Callable:
    """Keep Dynamo from unrolling the loop over time.

    It breaks the graph at torch.nn's recurrent layers, runs the frame around the break as it is (there
    is_traced() is False), and would then compile what that frame calls.
    """
    disabled: list[Callable] = []

    @functools.wraps(method)
    def run(*args: Any) -> Any:
        if "torch._dynamo" not in sys.modules:  # nothing compiles, and importing it takes seconds
            return method(*args)
        if not disabled:
            disabled.append(torch.compiler.disable(method))
        return disabled[0](*args)

    return run


class _Recurrent:
    """What the layers share. Parameters, checks and state_dict are torch's own Python (RNNBase)."""

    @outside_of_dynamo
    def _run(self, input: Any, hx: Any) -> tuple[Any, State]:
        """Unpack, add the batch dimension, run the layers, and undo that.

        Shape:   input: [time, batch, input_size], batch first if so asked, or without batch; or a PackedSequence
                 hx: (h, ...), each [layers * directions, batch, hidden], or None for zeros
        """
        packed = input if isinstance(input, PackedSequence) else None
        x, sizes, batch_sizes, is_batched = self._unpacked(input)
        state = self._initial_state(x, hx, packed, batch_sizes, is_batched)
        if not sizes:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        data = x if packed is not None else x.reshape(-1, x.size(-1))
        drop = self.dropout if self.training else 0.0
        out, final = run_layers(self.mode, data, sizes, state, self._weights(), 1 + self.bidirectional, drop)
        if torch._C._is_any_autocast_enabled():
            out, final = self._under_autocast(out, final, packed is not None)
        if packed is not None:
            unsorted = packed.unsorted_indices
            final = tuple(part if unsorted is None else part.index_select(1, unsorted) for part in final)
            return PackedSequence(out, packed.batch_sizes, packed.sorted_indices, unsorted), final
        out = out.view(len(sizes), x.size(1), out.size(-1))
        out = out.transpose(0, 1) if self.batch_first and is_batched else out
        return (out, final) if is_batched else (out.squeeze(1), tuple(part.squeeze(1) for part in final))

    def _under_autocast(self, out: Tensor, final: State, is_packed: bool) -> tuple[Tensor, State]:
        """The results in the dtypes that torch.autocast leaves them in.

        C++ narrows the products. Where a state is added to one (GRU, LSTM) it stays as wide as it was, but a kernel
        for the whole layer (oneDNN's LSTM, cuDNN) is narrow throughout.
        """
        if not is_autocast_on(out.device.type) or out.dtype not in (torch.float32, *NARROW_DTYPES):
            return out, final
        narrow = torch.get_autocast_dtype(out.device.type)
        kept = torch.promote_types(out.dtype, narrow)
        onednn = self.mode == "LSTM" and not (is_packed or self.proj_size) and torch.backends.mkldnn.enabled
        if self.mode.startswith("RNN") or onednn or out.device.type == "cuda":
            kept = narrow
        of_out = narrow if self.proj_size else kept
        return out.to(of_out), (final[0].to(of_out), *(part.to(kept) for part in final[1:]))

    def _unpacked(self, input: Any) -> tuple[Tensor, list[int], Tensor | None, bool]:
        """(input with time first and a batch, running sequences at each time, batch_sizes, had a batch)."""
        if isinstance(input, PackedSequence):
            return input.data, input.batch_sizes.tolist(), input.batch_sizes, True
        if input.dim() not in (2, 3):
            name = "LSTM" if self.mode == "LSTM" else "GRU" if self.mode == "GRU" else "RNN"
            noun = "tensor instead" if name == "RNN" else "instead"
            text = f"{name}: Expected input to be 2D or 3D, got {input.dim()}D {noun}"
            raise ValueError(text)
        is_batched = input.dim() == 3
        x = input if is_batched else input.unsqueeze(1)
        x = x.transpose(0, 1) if self.batch_first and is_batched else x
        return x, [x.size(1)] * x.size(0), None, is_batched

    def _initial_state(
        self, x: Tensor, hx: Any, packed: PackedSequence | None, batch_sizes: Tensor | None, is_batched: bool
    ) -> State:
        batch = int(batch_sizes[0]) if batch_sizes is not None else x.size(1)
        if hx is None:
            layers = self.num_layers * (1 + self.bidirectional)
            widths = [self.proj_size or self.hidden_size, self.hidden_size][: 2 if self.mode == "LSTM" else 1]
            state = tuple(x.new_zeros(layers, batch, width) for width in widths)
        else:
            state = hx if packed is not None else self._checked_dims(hx, is_batched)
            if packed is not None and packed.sorted_indices is not None:
                state = tuple(part.index_select(1, packed.sorted_indices) for part in state)
        self._check(x if packed is not None else self._as_given(x), state, batch_sizes)
        return state

    def _is_taken_over(self) -> bool:
        """Whether weights of another kind (per-sample gradients) answer themselves, to torch's function."""
        self._update_flat_weights()
        return is_taken_over(self._flat_weights)

    def _as_given(self, x: Tensor) -> Tensor:
        """torch's checks look at the input as it was given, batch first or not."""
        return x.transpose(0, 1) if self.batch_first else x

    def _check(self, x: Tensor, state: State, batch_sizes: Tensor | None) -> None:
        self.check_forward_args(x, state if self.mode == "LSTM" else state[0], batch_sizes)

    def _checked_dims(self, hx: State, is_batched: bool) -> State:
        wanted, adjective = (3, "batched 3-D") if is_batched else (2, "unbatched 2-D")
        if any(part.dim() != wanted for part in hx):
            if self.mode == "LSTM":
                raise RuntimeError(
                    f"For {adjective} input, hx and cx should also be {wanted}-D but got ({hx[0].dim()}-D, "
                    f"{hx[1].dim()}-D) tensors"
                )
            raise RuntimeError(
                f"For {adjective} input, hx should also be {wanted}-D but got {hx[0].dim()}-D tensor"
            )
        if self.mode == "LSTM":
            first_two = (hx[0], hx[1])
            hx = pair_of_states(hx if is_batched else first_two, "lstm(): argument 'hx' (position 2)")
        return tuple(hx) if is_batched else tuple(part.unsqueeze(1) for part in hx)

    def _weights(self) -> list[Weights]:
        """Of each layer and direction. A replica for DataParallel has them in _flat_weights alone."""
        self._update_flat_weights()
        each = len(self._flat_weights) // (self.num_layers * (1 + self.bidirectional))
        return [
            Weights(
                parts[0], parts[1], *(parts[2:4] if self.bias else (None, None)), *parts[2 + 2 * self.bias :]
            )
            for parts in zip(*[iter(self._flat_weights)] * each, strict=True)
        ]


class RNNBase(torch_rnn.RNNBase):
    """The parameters of a recurrent layer; torch's own Python. RNN, LSTM and GRU add the recurrence."""


class RNNCellBase(torch_rnn.RNNCellBase):
    """The parameters of a cell; torch's own Python. RNNCell, LSTMCell and GRUCell add the step."""


class RNN(_Recurrent, torch_rnn.RNN):
    """h_t = tanh(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh), or relu of it.

    Args:    num_layers: layer above layer; bidirectional: a second one runs backwards, outputs side by side
             dropout: between layers, while training; batch_first: [batch, time, ...] in and out
    Shape:   input: [time, batch, input_size], without batch, or a PackedSequence
             hx: [layers * directions, batch, hidden_size]
             returns: [time, batch, directions * hidden_size], and the last h like hx
    dtype:   computes in float32 for 16-bit inputs
    Raises:  ValueError, RuntimeError when sizes do not fit
    Source:  Elman, Finding structure in time, 1990; aten/native/RNN.cpp
    """

    def forward(self, input: Any, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        if is_traced() or self._is_taken_over():
            return super().forward(input, hx)
        out, (h,) = self._run(input, None if hx is None else (hx,))
        return out, h


class LSTM(_Recurrent, torch_rnn.LSTM):
    """c_t = sigmoid(f) c_(t-1) + sigmoid(i) tanh(g),   h_t = sigmoid(o) tanh(c_t),

    with (i, f, g, o) = W_ih x_t + b_ih + W_hh h_(t-1) + b_hh.

    Args:    as RNN; proj_size: h_t becomes W_hr h_t of this size
    Shape:   input: [time, batch, input_size], without batch, or a PackedSequence
             hx: (h, c), each [layers * directions, batch, size]
             returns: [time, batch, directions * size of h], and the last (h, c) like hx
    dtype:   computes in float32 for 16-bit inputs
    Raises:  ValueError, RuntimeError when sizes do not fit
    Source:  Hochreiter and Schmidhuber, Long short-term memory, 1997; aten/native/RNN.cpp
    """

    def forward(
        self, input: Any, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        if is_traced() or self._is_taken_over():
            return super().forward(input, hx)
        out, (h, c) = self._run(input, hx)
        return out, (h, c)


class GRU(_Recurrent, torch_rnn.GRU):
    """h_t = (1 - z) n + z h_(t-1),   r = sigmoid(x_r + h_r),   z = sigmoid(x_z + h_z),   n = tanh(x_n + r h_n),

    where x_* are the parts of W_ih x_t + b_ih and h_* those of W_hh h_(t-1) + b_hh.

    Args:    as RNN
    Shape:   input: [time, batch, input_size], without batch, or a PackedSequence
             hx: [layers * directions, batch, hidden_size]
             returns: [time, batch, directions * hidden_size], and the last h like hx
    dtype:   computes in float32 for 16-bit inputs
    Raises:  ValueError, RuntimeError when sizes do not fit
    Source:  Cho et al., Learning phrase representations using RNN encoder-decoder, 2014; aten/native/RNN.cpp
    """

    def forward(self, input: Any, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        if is_traced() or self._is_taken_over():
            return super().forward(input, hx)
        out, (h,) = self._run(input, None if hx is None else (hx,))
        return out, h


# ---- cells -----------------------------------------------------------------------------------------------


def pair_of_states(hx: Any, argument: str) -> State:
    """hx, where it is the (h, c) of an LSTM: a tensor that holds both is not taken apart.

    Raises:  TypeError for a tensor; RuntimeError unless there are two
    """
    if isinstance(hx, Tensor):
        raise TypeError(f"{argument} must be tuple of Tensors, not Tensor")
    if len(hx) != 2:
        raise RuntimeError(f"{argument.split('(')[0]} expects two hidden states")
    return tuple(hx)


class _Cell:
    """What the cells share: one step, with or without batch."""

    def _step(self, mode: str, input: Tensor, hx: Any, parts: int) -> State:
        name = type(self).__name__
        if input.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        for number, value in enumerate(() if hx is None else hx):
            if value.dim() not in (1, 2):
                which = f"hx[{number}]" if parts == 2 else "hidden"
                raise ValueError(f"{name}: Expected {which} to be 1D or 2D, got {value.dim()}D instead")
        is_batched = input.dim() == 2
        x = input if is_batched else input.unsqueeze(0)
        if hx is None:
            state = tuple(x.new_zeros(x.size(0), self.hidden_size) for _ in range(parts))
        else:
            if parts == 2:
                given = hx if is_batched else (hx[0], hx[1])
                hx = pair_of_states(given, "lstm_cell(): argument 'hx' (position 2)")
            state = tuple(value if is_batched else value.unsqueeze(0) for value in hx)
        self._check_sizes(x, state)
        weights = Weights(self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        if x.dtype != weights.ih.dtype:
            names = (type_name(x), type_name(weights.ih))
            raise RuntimeError(f"mat1 and mat2 must have the same dtype, but got {names[0]} and {names[1]}")
        weights = weights.widened()
        new = STEPS[mode](affine(widen(x), weights.ih, weights.bias_ih), tuple(map(widen, state)), weights)
        dtype = input.dtype
        if mode.startswith("RNN") and is_autocast_on(x.device.type) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(x.device.type)  # of its two products alone, which are narrowed
        return tuple((part if is_batched else part.squeeze(0)).to(dtype) for part in new)

    def _check_sizes(self, x: Tensor, state: State) -> None:
        if x.size(1) != self.weight_ih.size(1):
            raise RuntimeError(
                f"input has inconsistent input_size: got {x.size(1)} expected {self.weight_ih.size(1)}"
            )
        for number, part in enumerate(state):
            if part.size(0) != x.size(0):
                raise RuntimeError(
                    f"Input batch size {x.size(0)} doesn't match hidden{number} batch size {part.size(0)}"
                )
            if part.size(1) != self.hidden_size:
                raise RuntimeError(
                    f"hidden{number} has inconsistent hidden_size: got {part.size(1)}, expected {self.hidden_size}"
                )


class RNNCell(_Cell, torch_rnn.RNNCell):
    """h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu of it.

    Args:    input_size, hidden_size: of the weights; bias: learn b_ih and b_hh (default)
             nonlinearity: tanh (default) or relu
    Shape:   input: [batch, input_size] or [input_size]   hx: the same with hidden_size, default zeros   returns: as hx
    Raises:  ValueError, RuntimeError when sizes do not fit or the nonlinearity is unknown
    Source:  Elman, Finding structure in time, 1990
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if is_traced():
            return super().forward(input, hx)
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return self._step(f"RNN_{self.nonlinearity.upper()}", input, None if hx is None else (hx,), 1)[0]


class LSTMCell(_Cell, torch_rnn.LSTMCell):
    """One step of an LSTM: c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c').

    Args:    input_size, hidden_size: of the weights; bias: learn b_ih and b_hh (default)
    Shape:   input: [batch, input_size] or [input_size]   hx: (h, c), each with hidden_size, default zeros
             returns: (h', c')
    Raises:  ValueError, RuntimeError when sizes do not fit
    Source:  Hochreiter and Schmidhuber, Long short-term memory, 1997
    """

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        if is_traced():
            return super().forward(input, hx)
        h, c = self._step("LSTM", input, hx, 2)
        return h, c


class GRUCell(_Cell, torch_rnn.GRUCell):
    """One step of a GRU: h' = (1 - z) n + z h.

    Args:    input_size, hidden_size: of the weights; bias: learn b_ih and b_hh (default)
    Shape:   input: [batch, input_size] or [input_size]   hx: the same with hidden_size, default zeros   returns: as hx
    Raises:  ValueError, RuntimeError when sizes do not fit
    Source:  Cho et al., Learning phrase representations using RNN encoder-decoder, 2014
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if is_traced():
            return super().forward(input, hx)
        return self._step("GRU", input, None if hx is None else (hx,), 1)[0]
