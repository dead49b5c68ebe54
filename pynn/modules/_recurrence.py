"""The mathematics of recurrent layers: one step, and the loop over time around it.

A step takes what the input contributes (one matrix product for all times, before the loop), the state and the weights
of the recurrence, and gives the new state, whose first part is the output. Autograd differentiates the loop.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pynn.definitions import NARROW_DTYPES, widen
from pynn.modules._rectifiers import relu
from pynn.modules.dropout import dropout

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Weights:
    """Of one layer in one direction.

    Shape:   ih: [gates * hidden, input]   hh: [gates * hidden, output]   bias_ih, bias_hh: [gates * hidden]
             hr: [output, hidden], the projection of an LSTM
    """

    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    hr: Tensor | None = None

    def widened(self) -> "Weights":
        parts = (self.ih, self.hh, self.bias_ih, self.bias_hh, self.hr)
        return Weights(*(None if part is None else widen(part) for part in parts))  # type: ignore[arg-type]


Step = Callable[[Tensor, State, Weights], State]


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = torch.matmul(x, weight.t())
    return out if bias is None else out + bias


def tanh_step(gates: Tensor, state: State, weights: Weights) -> State:
    """h' = tanh(W_ih x + b_ih + W_hh h + b_hh)."""
    return (torch.tanh(gates + affine(state[0], weights.hh, weights.bias_hh)),)


def relu_step(gates: Tensor, state: State, weights: Weights) -> State:
    """h' = max(W_ih x + b_ih + W_hh h + b_hh, 0)."""
    return (relu(gates + affine(state[0], weights.hh, weights.bias_hh)),)


def lstm_step(gates: Tensor, state: State, weights: Weights) -> State:
    """c' = sigmoid(f) c + sigmoid(i) tanh(g),   h' = sigmoid(o) tanh(c'),   (i, f, g, o) = W_ih x + W_hh h + biases.

    With a projection, h' is W_hr times that.
    """
    h, c = state
    # [batch, 4 * hidden]
    i, f, g, o = (gates + affine(h, weights.hh, weights.bias_hh)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if weights.hr is None else torch.matmul(h, weights.hr.t())), c


def gru_step(gates: Tensor, state: State, weights: Weights) -> State:
    """h' = (1 - z) n + z h,   r = sigmoid(x_r + h_r),   z = sigmoid(x_z + h_z),   n = tanh(x_n + r h_n).

    x_r, x_z, x_n are the parts of W_ih x + b_ih; h_r, h_z, h_n those of W_hh h + b_hh.
    """
    (h,) = state
    width = h.size(-1)
    from_h = affine(h, weights.hh, weights.bias_hh)
    x_rz, x_n = gates.split([2 * width, width], -1)
    h_rz, h_n = from_h.split([2 * width, width], -1)
    r, z = torch.sigmoid(x_rz + h_rz).chunk(2, -1)
    n = torch.tanh(x_n + r * h_n)
    return (n + z * (h - n),)


STEPS: dict[str, Step] = {"RNN_TANH": tanh_step, "RNN_RELU": relu_step, "LSTM": lstm_step, "GRU": gru_step}


def run_sequence(
    step: Step, x: Tensor, sizes: Sequence[int], state: State, weights: Weights, reverse: bool
) -> tuple[Tensor, State]:
    """One layer in one direction over sequences that are sorted by length, the longest first.

    sizes:   how many sequences are still running at each time
    Shape:   x: [sum(sizes), input], time after time   state: [batch, hidden] each
             returns: [sum(sizes), output], and the state after each sequence's last step
    """
    gates = affine(x, weights.ih, weights.bias_ih).split(list(sizes))
    outputs: list[Tensor] = [x] * len(sizes)
    if reverse:
        current = tuple(part[: sizes[-1]] for part in state)
        for t in reversed(range(len(sizes))):
            running = current[0].size(0)
            if sizes[t] > running:  # sequences that end here begin here
                current = tuple(torch.cat([c, s[running : sizes[t]]]) for c, s in zip(current, state))
            current = step(gates[t], current, weights)
            outputs[t] = current[0]
        return torch.cat(outputs), current
    current, finished = state, []
    for t, running in enumerate(sizes):
        if running < current[0].size(0):
            finished.append(tuple(part[running:] for part in current))
            current = tuple(part[:running] for part in current)
        current = step(gates[t], current, weights)
        outputs[t] = current[0]
    parts = [current, *reversed(finished)]
    final = tuple(torch.cat(each) if len(parts) > 1 else each[0] for each in zip(*parts))
    return torch.cat(outputs), final


def run_layers(
    mode: str,
    x: Tensor,
    sizes: Sequence[int],
    state: State,
    weights: Sequence[Weights],
    directions: int,
    drop: float,
) -> tuple[Tensor, State]:
    """Layer after layer; each sees what both directions of the one below gave, with dropout in between.

    drop:    0 outside of training
    Shape:   x: [sum(sizes), input]   state: [layers * directions, batch, hidden] each
             returns: [sum(sizes), directions * output], and the final states like state
    dtype:   computes in float32 for 16-bit inputs
    """
    dtype, step = x.dtype, STEPS[mode]
    x, state = widen(x), tuple(widen(part) for part in state)
    finals = []
    for number in range(0, len(weights), directions):
        outputs = []
        for direction in range(directions):
            initial = tuple(part[number + direction] for part in state)
            layer = weights[number + direction]
            layer = layer.widened() if dtype in NARROW_DTYPES else layer
            out, final = run_sequence(step, x, sizes, initial, layer, direction == 1)
            outputs.append(out)
            finals.append(final)
        x = torch.cat(outputs, -1) if directions > 1 else outputs[0]
        if drop > 0 and number + directions < len(weights):
            x = dropout(x, drop, True)
    return x.to(dtype), tuple(torch.stack(each).to(dtype) for each in zip(*finals))
