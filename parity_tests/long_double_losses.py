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


# ---- bags of embeddings ----------------------------------------------------------------------------------


def embedding_bag(
    weight,
    indices,
    offsets,
    scale=False,
    mode=0,
    sparse=False,
    samples=None,
    include_last=False,
    padding_idx=-1,
) -> tuple:
    ends = [*map(int, offsets), *([] if include_last else [len(indices)])]
    out = numpy.zeros((len(ends) - 1, weight.shape[1]), longdouble)
    for b, (begin, end) in enumerate(zip(ends, ends[1:], strict=False)):
        members = [i for i in range(begin, end) if indices[i] != padding_idx]
        rows = [weight[indices[i]] * (1 if samples is None else samples[i]) for i in members]
        if rows:
            out[b] = numpy.max(rows, 0) if mode == 2 else numpy.sum(rows, 0) / (len(rows) if mode == 1 else 1)
    return out, 0, 0, 0


def embedding_bag_backward(
    grad, indices, offsets, _, sizes, largest, rows, scale_by_freq, mode, sparse, samples=None, padding_idx=-1
) -> Array:
    assert not sparse
    table = numpy.zeros((rows, grad.shape[1]), longdouble)
    if mode == 2:
        for b in numpy.flatnonzero(sizes):
            table[largest[b], numpy.arange(grad.shape[1])] += grad[b]
        return table
    bags = numpy.searchsorted(offsets, numpy.arange(len(indices)), side="right") - 1
    for i, row in enumerate(indices):
        if row != padding_idx:
            share = grad[bags[i]] * (1 if samples is None else samples[i])
            share = share / (sizes[bags[i]] if mode == 1 else 1)
            table[row] += share / ((indices == row).sum() if scale_by_freq else 1)
    return table


def embedding_bag_samples_backward(grad, weight, indices, offsets, _, mode, padding_idx=-1) -> Array:
    bags = numpy.searchsorted(offsets, numpy.arange(len(indices)), side="right") - 1
    counts = indices != padding_idx
    return numpy.array(
        [(grad[b] * weight[i]).sum() * c for b, i, c in zip(bags, indices, counts, strict=True)]
    )


# ---- distances of pairs ----------------------------------------------------------------------------------


def pdist(x: Array, p: float = 2) -> Array:
    pairs = [(i, j) for i in range(len(x)) for j in range(i + 1, len(x))]
    difference = numpy.array([abs(x[i] - x[j]) for i, j in pairs], longdouble).reshape(len(pairs), x.shape[1])
    if p == 0:
        return (difference != 0).sum(1).astype(longdouble)
    if numpy.isinf(p):
        return difference.max(1, initial=0)
    return (difference**p).sum(1) ** (1 / longdouble(p))


def pdist_backward(grad: Array, x: Array, p: float, distance: Array) -> Array:
    out = numpy.zeros(x.shape, longdouble)
    pairs = [(i, j) for i in range(len(x)) for j in range(i + 1, len(x))]
    for k, (i, j) in enumerate(pairs):
        difference = x[i] - x[j]
        if p == 0 or distance[k] == 0:
            continue
        if numpy.isinf(p):
            slope = abs(difference) == distance[k]
        else:
            safe = numpy.where(difference == 0, 1, abs(difference))
            slope = numpy.where(difference == 0, 0, (safe / distance[k]) ** (longdouble(p) - 1))
        out[i] += grad[k] * slope * numpy.sign(difference)
        out[j] -= grad[k] * slope * numpy.sign(difference)
    return out


# ---- a linear layer and its cross-entropy ----------------------------------------------------------------


def linear_cross_entropy(x, matrix, target, bias, weight, ignore_index) -> tuple:
    """The losses of the rows, their factors, and the losses' slopes in the logits."""
    logits = x @ matrix.T + (0 if bias is None else bias)
    logits = logits - logits.max(1, keepdims=True)
    log_probs = logits - numpy.log(exp(logits).sum(1, keepdims=True))
    if target.dtype.kind == "f":  # probabilities, which torch takes in chunks since 2.14
        wanted = target if weight is None else target * weight
        slope = exp(log_probs) * wanted.sum(1, keepdims=True) - wanted
        return -(log_probs * wanted).sum(1), numpy.ones(len(x)), slope
    counted = target != ignore_index
    labels, row = numpy.where(counted, target, 0), numpy.arange(len(x))
    factors = counted * (longdouble(1) if weight is None else weight[labels])
    slope = exp(log_probs)
    slope[row, labels] -= 1
    return -log_probs[row, labels] * factors, factors, slope * factors[:, None]


def linear_cross_entropy_reduced(x, matrix, target, bias, weight, reduction, ignore_index, *_) -> tuple:
    losses, factors, slope = linear_cross_entropy(x, matrix, target, bias, weight, ignore_index)
    *_, needs_x, needs_matrix, needs_bias = _
    scale = 1 / factors.sum() if reduction == "mean" else longdouble(1)
    slope = slope * scale
    grads = slope @ matrix, slope.T @ x, slope.sum(0)
    needs = needs_x, needs_matrix, needs_bias
    return losses.sum() * scale, *(grad if needed else 0 for grad, needed in zip(grads, needs, strict=True))


LOSSES = {
    "_linear_cross_entropy_batch_chunked": linear_cross_entropy_reduced,
    "_linear_cross_entropy_batch_chunked_no_reduction": lambda *args: linear_cross_entropy(*args[:6])[0],
    "_ctc_loss": ctc_loss,
    "_ctc_loss_backward": ctc_loss_backward,
    "_embedding_bag": embedding_bag,
    "_embedding_bag_forward_only": embedding_bag,
    "_embedding_bag_backward": embedding_bag_backward,
    "_embedding_bag_per_sample_weights_backward": embedding_bag_samples_backward,
    "_pdist_forward": pdist,
    "_pdist_backward": pdist_backward,
}
