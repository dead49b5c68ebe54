"""Adaptive softmax: frequent classes in a head, rare ones in clusters with smaller projections."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import ModuleList, Sequential
from torch.nn.modules.adaptive import _ASMoutput

from pynn.construction import init_module
from pynn.definitions import can_read_values
from pynn.modules._softmax import log_softmax
from pynn.modules.linear import Linear

__all__ = ["AdaptiveLogSoftmaxWithLoss"]


class AdaptiveLogSoftmaxWithLoss(torch.nn.AdaptiveLogSoftmaxWithLoss):
    """log p(class) = log softmax(head)[class] in the short list, else head's cluster plus tail's class in it.

        log p(class) = log softmax(head(x))[cluster of class] + log softmax(tail_cluster(x))[class in cluster]

    Only the rows whose target lies in a cluster pass through its tail.

    Args:    in_features: width of x; n_classes: how many classes
             cutoffs: where the clusters begin; the classes are sorted by frequency
             div_value: the i-th tail projects to in_features / div_value^(i + 1) features first
             head_bias: whether the head's linear layer has a bias
    Shape:   input: [batch, in_features] or [in_features]   target: [batch] or []
             returns: (output, loss): log p(target) as target, and the mean of -output
    Raises:  ValueError for cutoffs that are no increasing sequence inside the classes, RuntimeError for shapes that
             do not fit and targets out of range
    Source:  Grave et al., Efficient softmax approximation for GPUs, 2017; torch/nn/modules/adaptive.py
    """

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        cutoffs: Sequence[int],
        div_value: float = 4.0,
        head_bias: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        init_module(AdaptiveLogSoftmaxWithLoss, self)
        cutoffs = list(cutoffs)
        if not cutoffs:
            raise ValueError("cutoffs should be a sequence of length larger than 0")
        is_increasing = cutoffs == sorted(set(cutoffs)) and all(int(c) == c for c in cutoffs)
        if not is_increasing or cutoffs[0] <= 0 or cutoffs[-1] > n_classes - 1:
            raise ValueError(
                "cutoffs should be a sequence of unique, positive integers sorted in an increasing order, where "
                "each value is between 1 and n_classes-1"
            )
        self.in_features = in_features
        self.n_classes = n_classes
        self.cutoffs = [*cutoffs, n_classes]
        self.div_value = div_value
        self.head_bias = head_bias
        self.shortlist_size = self.cutoffs[0]
        self.n_clusters = len(self.cutoffs) - 1
        self.head_size = self.shortlist_size + self.n_clusters
        factory = {"device": device, "dtype": dtype}
        self.head = Linear(in_features, self.head_size, bias=head_bias, **factory)
        self.tail = ModuleList()
        for i, (begin, end) in enumerate(itertools.pairwise(self.cutoffs)):
            narrow = int(in_features // div_value ** (i + 1))
            self.tail.append(
                Sequential(
                    Linear(in_features, narrow, bias=False, **factory),
                    Linear(narrow, end - begin, bias=False, **factory),
                )
            )

    def reset_parameters(self) -> None:
        """Draw every linear layer's weight again."""
        self.head.reset_parameters()
        for narrowing, widening in self.tail:
            narrowing.reset_parameters()
            widening.reset_parameters()

    def forward(self, input_: Tensor, target_: Tensor) -> _ASMoutput:
        self._check_shapes(input_, target_)
        is_batched = target_.dim() == 1
        input = input_ if is_batched else input_.unsqueeze(0)
        target = target_ if is_batched else target_.unsqueeze(0)
        if torch.compiler.is_compiling() or can_read_values(target):
            output = self._log_prob_of_targets(input, target)
        else:  # which rows belong to a cluster can't be asked: every row passes through all
            output = self.log_prob(input).gather(1, target.unsqueeze(1)).squeeze(1)
        loss = (-output).mean()
        return _ASMoutput(output if is_batched else output.squeeze(0), loss)

    def _check_shapes(self, input: Tensor, target: Tensor) -> None:
        if target.dim() > 1:
            raise RuntimeError("0D or 1D target tensor expected, multi-target not supported")
        if target.dim() == 1 and input.size(0) != target.size(0):
            raise RuntimeError("Input and target should have the same size in the batch dimension.")
        if input.dim() != target.dim() + 1:
            raise RuntimeError(
                f"{target.dim()}D target tensor expects {target.dim() + 1}D input tensors, but found inputs with "
                f"size {input.size()}"
            )

    def _log_prob_of_targets(self, input: Tensor, target: Tensor) -> Tensor:
        """log p(target), each row through the tail of its target's cluster only: [batch]."""
        # the head's entry for each row: its class, or its cluster
        places = target.clone()
        output, used_rows = input.new_zeros(target.size(0)), 0
        for i, (low, high) in enumerate(itertools.pairwise([0, *self.cutoffs])):
            rows = ((target >= low) & (target < high)).nonzero().squeeze(1)
            used_rows += rows.numel()
            if i == 0 or rows.numel() == 0:
                continue
            places = places.index_copy(0, rows, torch.full_like(rows, self.shortlist_size + i - 1))
            log_probs = log_softmax(self.tail[i - 1](input.index_select(0, rows)), dim=1)
            relative = (target.index_select(0, rows) - low).unsqueeze(1)
            found = log_probs.gather(1, relative).squeeze(1)
            output = output.index_copy(0, rows, found.to(output.dtype))  # autocast narrows the tail
        if used_rows != target.size(0):
            raise RuntimeError(
                f"Target values should be in [0, {self.n_classes - 1}], but values in range "
                f"[{target.min().item()}, {target.max().item()}] were found. "
            )
        head = log_softmax(self.head(input), dim=1)
        return output + head.gather(1, places.unsqueeze(1)).squeeze(1)

    def _get_full_log_prob(self, input: Tensor, head_output: Tensor) -> Tensor:
        """log p of every class, from the head's output: [batch, n_classes]."""
        head = log_softmax(head_output, dim=1)
        parts = [head[:, : self.shortlist_size]]
        for i, tail in enumerate(self.tail):
            parts.append(log_softmax(tail(input), dim=1) + head[:, self.shortlist_size + i].unsqueeze(1))
        return torch.cat(parts, 1).to(input.dtype)  # which autocast has narrowed

    def log_prob(self, input: Tensor) -> Tensor:
        """log p of every class.

        Shape:   input: [batch, in_features]   returns: [batch, n_classes]
        """
        return self._get_full_log_prob(input, self.head(input))

    def predict(self, input: Tensor) -> Tensor:
        """The likeliest class; only rows whose head points to a cluster need the tails.

        Shape:   input: [batch, in_features]   returns: [batch]
        """
        head_output = self.head(input)
        output = head_output.argmax(dim=1)
        is_rare = output >= self.shortlist_size
        if not is_rare.any():
            return output
        log_prob = self._get_full_log_prob(input[is_rare], head_output[is_rare])
        output[is_rare] = log_prob.argmax(dim=1)
        return output
