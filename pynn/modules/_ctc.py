"""Connectionist temporal classification: every way of spelling the target over the input's time steps.

Notation of the paper (A. Graves et al., 2006): the extended labels l' are blank, l_1, blank, ..., l_L, blank; a
path stands at one of their positions s at each time t, and from one step to the next it may stay, go to s + 1, or
skip a blank between two different labels and go to s + 2.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pynn.construction import init_module
from pynn.definitions import Function, can_read_values, defines, traced_as
from pynn.modules._ctc_checks import (
    Lengths,
    check_input_lengths,
    check_kinds,
    check_log_probs,
    check_targets,
)
from pynn.modules._reduction import MEAN, SUM, reduction_number

__all__ = ["CTCLoss", "ctc_loss"]

aten = torch.ops.aten


# ---- definitions -----------------------------------------------------------------------------------------


class Alignment(NamedTuple):
    """What the two recursions need: -inf stands for log 0. The batch comes last, so that neighbours s - 1 and s - 2
    are whole rows of memory.

    labels:     l'                                          [positions, batch]
    emissions:  log_probs of l'[s] at time t, -inf outside the two lengths   [time, positions, batch]
    skips:      0 where a path may come from s - 2, else -inf                [positions, batch]
    ends:       0 at the two positions where a path may end, else -inf       [positions, batch]
    """

    labels: Tensor
    emissions: Tensor
    skips: Tensor
    ends: Tensor


def log_of(condition: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where the condition holds, else -inf."""
    return torch.zeros(condition.shape, dtype=dtype, device=condition.device).masked_fill(
        ~condition, -torch.inf
    )


def log_sum_exp(x: Tensor) -> Tensor:
    """log(sum(exp(x))) along the first dimension; where every x is -inf it is -inf, and its derivative 0."""
    largest = x.detach().amax(0)
    # shifted by the largest, so that nothing overflows; -inf - lowest is -inf, not NaN
    shifted = x - largest.clamp_min(torch.finfo(x.dtype).min)
    # beside exp(0) = 1 exp(-80) is nothing, and does not get as far as subnormal numbers and log(0), which are slow
    return shifted.clamp_min(-80).exp().sum(0).log() + largest


def align(
    log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor, blank: int
) -> Alignment:
    """The extended labels of padded targets, and what a path finds there.

    Shape:   log_probs: [time, batch, classes]   targets: [batch, longest]   lengths: [batch]
    """
    batch, longest = targets.shape
    place = torch.arange(2 * longest + 1, device=targets.device).unsqueeze(1)
    targets = torch.where(place[:longest] < target_lengths, targets.t(), blank)
    blanks = torch.full_like(targets, blank)
    # [longest, 2, batch] -> [2 * longest + 1, batch]
    pairs = torch.stack([blanks, targets], 1).reshape(2 * longest, batch)
    labels = torch.constant_pad_nd(pairs, (0, 0, 0, 1), value=blank)
    two_before = torch.constant_pad_nd(labels, (0, 0, 2, 0), value=blank)[:-2]
    can_skip = (labels != two_before) & (place > 1)
    last = 2 * target_lengths
    can_end = (place == last) | (place == last - 1)
    # [time, batch, positions] -> [time, positions, batch]
    emissions = log_probs.gather(2, labels.t().expand(log_probs.size(0), -1, -1)).transpose(1, 2).contiguous()
    time = torch.arange(log_probs.size(0), device=targets.device)
    is_inside = (time.unsqueeze(1) < input_lengths).unsqueeze(1) & (place <= last)
    emissions = torch.where(is_inside, emissions, -torch.inf)
    return Alignment(labels, emissions, log_of(can_skip, log_probs.dtype), log_of(can_end, log_probs.dtype))


def three_in_a_row(x: Tensor) -> Tensor:
    """x[s], x[s + 1] and x[s + 2] for all s: [positions + 2, batch] -> [3, positions, batch], a view."""
    return x.unfold(0, x.size(0) - 2, 1).transpose(1, 2)


def forward_variables(emissions: Tensor, skips: Tensor) -> Tensor:
    """log alpha: the probability of all path beginnings that stand at s at time t.

        alpha[t, s] = (alpha[t-1, s] + alpha[t-1, s-1] + skip[s] * alpha[t-1, s-2]) * p[t, s]

    Shape:   emissions: [time, positions, batch]   skips: [positions, batch]   returns: as emissions
    """
    is_start = torch.arange(emissions.size(1), device=emissions.device).unsqueeze(1) < 2
    alpha = emissions[0].masked_fill(~is_start, -torch.inf)
    steps = torch.stack([skips, torch.zeros_like(skips), torch.zeros_like(skips)])
    nowhere = torch.full_like(skips[:1], -torch.inf).repeat(2, 1)
    alphas = [alpha]
    for emission in emissions[1:].unbind(0):
        before = three_in_a_row(torch.cat([nowhere, alpha]))  # s - 2, s - 1, s
        alpha = log_sum_exp(steps + before) + emission
        alphas.append(alpha)
    return torch.stack(alphas)


def backward_variables(alignment: Alignment, input_lengths: Tensor) -> Tensor:
    """log beta: the probability of all path endings after time t that set out from s.

        beta[t, s] = sum of beta[t+1, r] * p[t+1, r] over r = s, s+1 and, if it may be skipped to, s+2
        beta[last, s] = 1 at the two positions where a path may end

    Shape:   input_lengths: [batch]   returns: [time, positions, batch]
    """
    _, emissions, skips, ends = alignment
    skips_onward = torch.constant_pad_nd(skips, (0, 0, 0, 2), value=-torch.inf)[2:]
    steps = torch.stack([torch.zeros_like(skips), torch.zeros_like(skips), skips_onward])
    nowhere = torch.full_like(skips[:1], -torch.inf).repeat(2, 1)
    is_last = torch.arange(1, emissions.size(0) + 1, device=skips.device).unsqueeze(1) == input_lengths
    *ends_before, beta = torch.where(is_last.unsqueeze(1), ends, -torch.inf).unbind(0)
    betas = [beta]
    for emission, end in zip(reversed(emissions[1:].unbind(0)), reversed(ends_before), strict=True):
        after = three_in_a_row(torch.cat([beta + emission, nowhere]))  # s, s + 1, s + 2
        # past the last step every emission is log 0, so that one of the two is
        beta = torch.maximum(log_sum_exp(steps + after), end)
        betas.append(beta)
    return torch.stack(betas[::-1])


def negative_log_likelihood(
    log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor, blank: int
) -> tuple[Tensor, Tensor]:
    """-log of the sum of alpha over the ends, and log alpha.

    Shape:   log_probs: [time, batch, classes]   targets: [batch, longest]
             returns: [batch], [batch, time, 2 * longest + 1]
    """
    alignment = align(log_probs, targets, input_lengths, target_lengths, blank)
    log_alpha = forward_variables(alignment.emissions, alignment.skips)
    last = (input_lengths - 1).clamp_min(0).expand(1, log_alpha.size(1), -1)
    log_likelihood = log_sum_exp(log_alpha.gather(0, last).squeeze(0) + alignment.ends)
    # no input spells the empty target with certainty
    is_nothing = (input_lengths == 0) & (target_lengths == 0)
    return -torch.where(is_nothing, 0, log_likelihood), log_alpha.permute(2, 0, 1)


def negative_log_likelihood_backward(
    grad: Tensor,
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    losses: Tensor,
    log_alpha: Tensor,
    blank: int,
    zero_infinity: bool,
) -> Tensor:
    """grad * (exp(log_probs) - share), the share of the paths that emit class c at time t.

        share[t, c] = sum of alpha[t, s] * beta[t, s] / likelihood over the s with l'[s] = c

    As in torch, exp(log_probs) is the gradient of the normalisation: this is the derivative of the loss where
    log_probs come from a log_softmax, and in the direction that leaves their sum at 1. Also as in torch, which takes
    the share as alpha * beta * p / p, it is NaN where p[t, c] is 0.

    Shape:   grad, losses: [batch]   log_alpha: [batch, time, positions]   returns: [time, batch, classes]
    """
    alignment = align(log_probs, targets, input_lengths, target_lengths, blank)
    log_beta = backward_variables(alignment, input_lengths)
    shares = (log_alpha.permute(1, 2, 0) + log_beta + losses).exp()  # [time, positions, batch]
    shares = shares.transpose(1, 2)  # [time, batch, positions]
    share = torch.zeros_like(log_probs).scatter_add(2, alignment.labels.t().expand_as(shares), shares)
    losses, grad = losses.unsqueeze(1), grad.unsqueeze(1)
    is_impossible = losses == torch.inf
    is_undefined = is_impossible | (log_probs == -torch.inf)
    gradient = (log_probs.exp() - share).masked_fill(is_undefined, torch.nan) * grad
    time = torch.arange(log_probs.size(0), device=log_probs.device).unsqueeze(1)
    is_outside = (time >= input_lengths).unsqueeze(2)
    return gradient.masked_fill(is_outside | is_impossible if zero_infinity else is_outside, 0)


def as_tensor(lengths: Lengths, device: torch.device) -> Tensor:
    """Lengths as int64: [batch]."""
    if isinstance(lengths, Tensor):
        return lengths.to(device, torch.int64).reshape(-1)
    return torch.tensor([int(length) for length in lengths], dtype=torch.int64, device=device)


def longest_target(targets: Tensor, target_lengths: Lengths) -> int:
    """The largest target length; where it can't be read, the largest that the targets have room for."""
    if isinstance(target_lengths, Tensor):
        if not can_read_values(target_lengths):
            return targets.size(-1)
        target_lengths = target_lengths.reshape(-1).tolist()
    return max((int(length) for length in target_lengths), default=0)


def padded(targets: Tensor, target_lengths: Tensor, longest: int) -> Tensor:
    """Targets, padded or concatenated, as [batch, longest]; what stands past a target's end is arbitrary."""
    targets = targets.to(torch.int64)
    if targets.dim() == 2:
        return targets[:, :longest]
    begins = target_lengths.cumsum(0) - target_lengths
    places = begins.unsqueeze(1) + torch.arange(longest, device=targets.device)
    places = places.clamp_max(max(targets.size(0) - 1, 0))
    return targets.index_select(0, places.reshape(-1)).view(places.shape)


@defines(aten._ctc_loss.default, aten._ctc_loss.Tensor)
def ctc_loss_forward(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    zero_infinity: bool = False,
) -> tuple[Tensor, Tensor]:
    """negative_log_likelihood of targets that are padded or concatenated.

    differs from torch in: log alpha is -inf past the lengths, where ATen leaves memory as it was
    """
    device, longest = log_probs.device, longest_target(targets, target_lengths)
    lengths = as_tensor(input_lengths, device), as_tensor(target_lengths, device)
    return negative_log_likelihood(log_probs, padded(targets, lengths[1], longest), *lengths, blank)


@defines(aten._ctc_loss_backward.default, aten._ctc_loss_backward.Tensor)
def ctc_loss_backward(
    grad: Tensor,
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    neg_log_likelihood: Tensor,
    log_alpha: Tensor,
    blank: int,
    zero_infinity: bool = False,
) -> Tensor:
    """negative_log_likelihood_backward for targets that are padded or concatenated."""
    longest = (log_alpha.size(2) - 1) // 2
    lengths = as_tensor(input_lengths, grad.device), as_tensor(target_lengths, grad.device)
    targets = padded(targets, lengths[1], longest)
    # where ATen's forward wrote nothing, the gradient reads nothing
    steps = torch.arange(log_alpha.size(1), device=grad.device)
    places = torch.arange(log_alpha.size(2), device=grad.device)
    is_written = (steps < lengths[0].unsqueeze(1)).unsqueeze(2) & (
        places <= 2 * lengths[1].unsqueeze(1)
    ).unsqueeze(1)
    log_alpha = log_alpha.masked_fill(~is_written, -torch.inf)
    return negative_log_likelihood_backward(
        grad, log_probs, targets, *lengths, neg_log_likelihood, log_alpha, blank, zero_infinity
    )


# ---- public functions ------------------------------------------------------------------------------------


class _CTC(Function):
    """The two recursions. Where the gradient is itself differentiated, alpha is computed again to take part."""

    @staticmethod
    def forward(
        log_probs: Tensor,
        targets: Tensor,
        input_lengths: Tensor,
        target_lengths: Tensor,
        blank: int,
        zero_infinity: bool,
    ) -> tuple[Tensor, Tensor]:
        return negative_log_likelihood(log_probs, targets, input_lengths, target_lengths, blank)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.blank, ctx.zero_infinity = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, *output)
        ctx.save_for_forward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple:
        *inputs, losses, log_alpha = ctx.saved_tensors
        if torch.is_grad_enabled():
            losses, log_alpha = negative_log_likelihood(*inputs, ctx.blank)
        gradient = negative_log_likelihood_backward(
            grad, *inputs, losses, log_alpha, ctx.blank, ctx.zero_infinity
        )
        return gradient, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> tuple[Tensor, None]:
        *inputs, losses, log_alpha = ctx.saved_tensors
        ones = torch.ones_like(losses)
        gradient = negative_log_likelihood_backward(
            ones, *inputs, losses, log_alpha, ctx.blank, ctx.zero_infinity
        )
        return (gradient * tangent).sum((0, 2)), None


@traced_as(F.ctc_loss)
def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """-log of the probability that log_probs spell the targets, summed over all alignments.

    Args:    targets: padded to a rectangle, or concatenated in one line
             input_lengths, target_lengths: tensors or tuples of integers, both of the same kind
             blank: the class that stands for no label
             reduction: mean divides each loss by its target's length (at least 1) first
             zero_infinity: targets too long for their input cost 0 instead of infinity, and have no gradient
    Shape:   log_probs: [time, batch, classes] or [time, classes]   targets: [batch, longest] or [sum of lengths]
             lengths: [batch] or []   returns: [batch] or [], a scalar when reduced
    dtype:   log_probs float32 or float64, returned so; targets are read as int64
    Raises:  RuntimeError for lengths that do not fit log_probs or targets, and a blank that is no class;
             TypeError for lengths of two kinds; NotImplementedError for 16 bits and integers; ValueError for
             an unknown reduction
    Source:  Graves et al., Connectionist Temporal Classification, 2006; aten/native/LossCTC.cpp.
             differs from torch in: labels outside the classes raise, where ATen reads past its memory
    """
    number = reduction_number(reduction)
    check_kinds(targets, input_lengths, target_lengths, blank)
    is_batched = log_probs.dim() == 3
    log_probs = log_probs if is_batched else log_probs.unsqueeze(1)
    check_log_probs(log_probs, blank)
    check_input_lengths(log_probs, input_lengths)
    check_targets(log_probs, targets, target_lengths)
    longest = longest_target(targets, target_lengths)
    lengths = [as_tensor(n, log_probs.device) for n in (input_lengths, target_lengths)]
    rectangle = padded(targets.to(log_probs.device), lengths[1], longest)
    losses, _ = _CTC.apply(log_probs, rectangle, *lengths, blank, zero_infinity)
    if zero_infinity:
        losses = torch.where(losses == torch.inf, 0, losses)
    if number == MEAN:
        return (losses / lengths[1].clamp_min(1)).mean()
    if number == SUM:
        return losses.sum()
    return losses if is_batched else losses.squeeze(0)


# ---- classes ---------------------------------------------------------------------------------------------


class CTCLoss(torch.nn.CTCLoss):
    """-log of the probability that log_probs spell the targets, summed over all alignments.

    Args:    blank, reduction, zero_infinity: as `ctc_loss`'s
    Shape:   log_probs: [time, batch, classes] or [time, classes]   targets: [batch, longest] or [sum of lengths]
             lengths: [batch] or []   returns: a scalar, or with reduction none [batch] or []
    Raises:  RuntimeError for lengths that do not fit log_probs or targets
    Source:  see `ctc_loss`
    """

    __constants__ = ["blank", "reduction"]

    def __init__(self, blank: int = 0, reduction: str = "mean", zero_infinity: bool = False) -> None:
        init_module(CTCLoss, self)
        self.reduction = reduction
        self.blank = blank
        self.zero_infinity = zero_infinity

    def forward(
        self, log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor
    ) -> Tensor:
        return ctc_loss(
            log_probs,
            targets,
            input_lengths,
            target_lengths,
            self.blank,
            self.reduction,
            self.zero_infinity,
        )
