"""Rows for `long_double_ops`: fused losses, bags and distances, spelled out element by element in numpy."""

import numpy
from numpy import exp, longdouble

Array = numpy.ndarray


# ---- CTC: sums over paths, in log space ------------------------------------------------------------------


def ctc_labels(targets: Array, target_lengths, batch: int, blank: int) -> list[int]:
    """One target with a blank before, between and after its labels."""
    length = int(target_lengths[batch])
    begin = int(sum(target_lengths[:batch]))
    row = targets[batch][:length] if targets.ndim == 2 else targets[begin : begin + length]
    return [blank, *(each for label in row for each in (int(label), blank))]


def ctc_alpha(emissions: Array, labels: list[int]) -> Array:
    """emissions: [time, positions]; the log-probability of all beginnings that stand at s at time t."""
    alpha = numpy.full(emissions.shape, -numpy.inf, longdouble)
    alpha[0, :2] = emissions[0, :2]
    for t in range(1, len(emissions)):
        for s, label in enumerate(labels):
            sources = [alpha[t - 1, r] for r in range(max(s - 1, 0), s + 1)]
            if s > 1 and label != labels[s - 2]:
                sources.append(alpha[t - 1, s - 2])
            alpha[t, s] = numpy.logaddexp.reduce(sources) + emissions[t, s]
    return alpha


def ctc_loss(log_probs, targets, input_lengths, target_lengths, blank=0, zero_infinity=False) -> tuple:
    time, batch, _ = log_probs.shape
    input_lengths, target_lengths = numpy.atleast_1d(input_lengths), numpy.atleast_1d(target_lengths)
    losses = numpy.zeros(batch, longdouble)
    alphas = numpy.full((batch, time, 2 * int(max(target_lengths, default=0)) + 1), -numpy.inf, longdouble)
    for b in range(batch):
        labels, steps = ctc_labels(targets, target_lengths, b, blank), int(input_lengths[b])
        if steps == 0:
            losses[b] = 0 if len(labels) == 1 else numpy.inf
            continue
        alpha = ctc_alpha(log_probs[:steps, b][:, labels], labels)
        alphas[b, :steps, : len(labels)] = alpha
        losses[b] = -numpy.logaddexp.reduce(alpha[-1, -2:])
    return losses, alphas


def ctc_loss_backward(
    grad, log_probs, targets, input_lengths, target_lengths, losses, alphas, blank, zero_infinity=False
) -> Array:
    """beta is the alpha of the line read backwards; it counts the step's own emission once more."""
    input_lengths, target_lengths = numpy.atleast_1d(input_lengths), numpy.atleast_1d(target_lengths)
    out = numpy.zeros(log_probs.shape, longdouble)
    for b in range(log_probs.shape[1]):
        labels, steps = ctc_labels(targets, target_lengths, b, blank), int(input_lengths[b])
        if steps == 0 or (zero_infinity and numpy.isinf(losses[b])):
            continue
        emissions = log_probs[:steps, b][:, labels]
        beta = ctc_alpha(emissions[::-1, ::-1], labels[::-1])[::-1, ::-1]
        paths = exp(alphas[b, :steps, : len(labels)] + beta - emissions + losses[b])
        gradient = exp(log_probs[:steps, b])
        if numpy.isinf(losses[b]):
            gradient[...] = numpy.nan
        for s, label in enumerate(labels):
            gradient[:, label] -= paths[:, s]
        out[:steps, b] = gradient * grad[b]
    return out


LOSSES = {"_ctc_loss": ctc_loss, "_ctc_loss_backward": ctc_loss_backward}
