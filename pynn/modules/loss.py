"""Loss layers. The mathematics is in _regression_losses, _classification_losses, _ranking_losses,
_soft_margin_losses, _ctc and _linear_cross_entropy.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import _reduction
from typing_extensions import deprecated

from pynn.construction import init_module
from pynn.modules import (
    _classification_losses,
    _ctc,
    _ranking_losses,
    _regression_losses,
    _soft_margin_losses,
)
from pynn.modules._classification_losses import *  # noqa: F403
from pynn.modules._ctc import *  # noqa: F403
from pynn.modules._ranking_losses import *  # noqa: F403
from pynn.modules._regression_losses import *  # noqa: F403
from pynn.modules._soft_margin_losses import *  # noqa: F403
from pynn.modules.distance import PairwiseDistance

_SINCE_2_13: list[str] = []  # a name that the installed torch lacks, pynn lacks too
if hasattr(torch.nn, "LinearCrossEntropyLoss"):
    from pynn.modules import _linear_cross_entropy
    from pynn.modules._linear_cross_entropy import *  # noqa: F403

    _SINCE_2_13 += _linear_cross_entropy.__all__

__all__ = [
    *_classification_losses.__all__,
    *_ctc.__all__,
    *_SINCE_2_13,
    *_ranking_losses.__all__,
    *_regression_losses.__all__,
    *_soft_margin_losses.__all__,
    "L1Loss",
    "NLLLoss",
    "NLLLoss2d",
    "PoissonNLLLoss",
    "GaussianNLLLoss",
    "KLDivLoss",
    "MSELoss",
    "BCELoss",
    "BCEWithLogitsLoss",
    "HingeEmbeddingLoss",
    "MultiLabelMarginLoss",
    "SmoothL1Loss",
    "HuberLoss",
    "SoftMarginLoss",
    "CrossEntropyLoss",
    "MultiLabelSoftMarginLoss",
    "CosineEmbeddingLoss",
    "MarginRankingLoss",
    "MultiMarginLoss",
    "TripletMarginLoss",
    "TripletMarginWithDistanceLoss",
]


class _Loss:
    """What the loss layers share: `reduction`, which the deprecated size_average and reduce override."""

    __constants__ = ["reduction"]
    reduction: str

    def __init__(self, size_average=None, reduce=None, reduction: str = "mean") -> None:
        init_module(_Loss, self)
        if size_average is not None or reduce is not None:
            reduction = _reduction.legacy_get_string(size_average, reduce)
        self.reduction = reduction


class _WeightedLoss(_Loss):
    """A loss with a buffer `weight`: one factor a class or an element."""

    weight: Tensor | None

    def __init__(
        self, weight: Tensor | None = None, size_average=None, reduce=None, reduction: str = "mean"
    ) -> None:
        _Loss.__init__(self, size_average, reduce, reduction)
        self.register_buffer("weight", weight)  # type: ignore[attr-defined]


class L1Loss(_Loss, torch.nn.L1Loss):
    """|input - target|, reduced.

    Args:    reduction: mean (default), sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input, target: [*]   returns: their shape, or a scalar when reduced
    Source:  see `l1_loss`
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _regression_losses.l1_loss(input, target, reduction=self.reduction)


class NLLLoss(_WeightedLoss, torch.nn.NLLLoss):
    """-weight[target] * input[target], reduced; the mean divides by the sum of the weights.

    Args:    weight: a factor for each class; ignore_index: a target that counts for nothing, default -100
             reduction: mean (default), sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input: [batch, classes, *] or [classes]   target: [batch, *] or [] integers
             returns: as target, or a scalar when reduced
    Source:  see `nll_loss`
    """

    __constants__ = ["ignore_index", "reduction"]

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average=None,
        ignore_index: int = -100,
        reduce=None,
        reduction: str = "mean",
    ) -> None:
        _WeightedLoss.__init__(self, weight, size_average, reduce, reduction)
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _classification_losses.nll_loss(
            input, target, weight=self.weight, ignore_index=self.ignore_index, reduction=self.reduction
        )


with warnings.catch_warnings():  # deriving from a deprecated class warns already
    warnings.simplefilter("ignore", FutureWarning)

    @deprecated(
        "`NLLLoss2d` has been deprecated. Please use `NLLLoss` instead as a drop-in replacement and see "
        "https://pytorch.org/docs/main/nn.html#torch.nn.NLLLoss for more details.",
        category=FutureWarning,
    )
    class NLLLoss2d(NLLLoss, torch.nn.NLLLoss2d):
        """The same as `NLLLoss`; deprecated."""

        def __init__(
            self,
            weight: Tensor | None = None,
            size_average=None,
            ignore_index: int = -100,
            reduce=None,
            reduction: str = "mean",
        ) -> None:
            NLLLoss.__init__(self, weight, size_average, ignore_index, reduce, reduction)


class PoissonNLLLoss(_Loss, torch.nn.PoissonNLLLoss):
    """Negative log likelihood of a Poisson distributed target.

    Args:    log_input, full, eps: as `poisson_nll_loss`'s
             reduction: mean (default), sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input, target: [*]   returns: their shape, or a scalar when reduced
    Source:  see `poisson_nll_loss`
    """

    __constants__ = ["log_input", "full", "eps", "reduction"]

    def __init__(
        self,
        log_input: bool = True,
        full: bool = False,
        size_average=None,
        eps: float = 1e-8,
        reduce=None,
        reduction: str = "mean",
    ) -> None:
        _Loss.__init__(self, size_average, reduce, reduction)
        self.log_input = log_input
        self.full = full
        self.eps = eps

    def forward(self, log_input: Tensor, target: Tensor) -> Tensor:
        return _regression_losses.poisson_nll_loss(
            log_input,
            target,
            log_input=self.log_input,
            full=self.full,
            eps=self.eps,
            reduction=self.reduction,
        )


class GaussianNLLLoss(_Loss, torch.nn.GaussianNLLLoss):
    """Negative log likelihood of a normally distributed target with the given variance.

    Args:    full: add log(2 * pi) / 2 (default False); eps: the least variance, default 1e-6
             reduction: mean (default), sum or none
    Shape:   input, target: [*]   var: broadcastable to them   returns: their shape, or a scalar when reduced
    Source:  see `gaussian_nll_loss`
    """

    __constants__ = ["full", "eps", "reduction"]

    def __init__(self, *, full: bool = False, eps: float = 1e-6, reduction: str = "mean") -> None:
        _Loss.__init__(self, None, None, reduction)
        self.full = full
        self.eps = eps

    def forward(self, input: Tensor, target: Tensor, var: Tensor | float) -> Tensor:
        return _regression_losses.gaussian_nll_loss(
            input, target, var, full=self.full, eps=self.eps, reduction=self.reduction
        )


class KLDivLoss(_Loss, torch.nn.KLDivLoss):
    """target * (log(target) - input), reduced.

    Args:    log_target: target is a logarithm as input is (default False)
             reduction: mean (default), sum, none or batchmean
             size_average, reduce: its deprecated forerunners
    Shape:   input, target: [*]   returns: their shape, or a scalar when reduced
    Source:  see `kl_div`
    """

    def __init__(
        self, size_average=None, reduce=None, reduction: str = "mean", log_target: bool = False
    ) -> None:
        _Loss.__init__(self, size_average, reduce, reduction)
        self.log_target = log_target

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _classification_losses.kl_div(
            input, target, reduction=self.reduction, log_target=self.log_target
        )


class MSELoss(_Loss, torch.nn.MSELoss):
    """(input - target)^2, reduced.

    Args:    reduction: mean (default), sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input, target: [*]   returns: their shape, or a scalar when reduced
    Source:  see `mse_loss`
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _regression_losses.mse_loss(input, target, reduction=self.reduction)


class BCELoss(_WeightedLoss, torch.nn.BCELoss):
    """-(target * log(input) + (1 - target) * log(1 - input)), weighted and reduced.

    Args:    weight: a factor for each element
             reduction: mean (default), sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input, target: [*]   returns: their shape, or a scalar when reduced
    Source:  see `binary_cross_entropy`
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _classification_losses.binary_cross_entropy(
            input, target, weight=self.weight, reduction=self.reduction
        )


class BCEWithLogitsLoss(_Loss, torch.nn.BCEWithLogitsLoss):
    """BCELoss of sigmoid(input).

    Args:    weight: a factor for each element; pos_weight: one for the positive targets
             reduction: mean (default), sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input, target: [*]   returns: their shape, or a scalar when reduced
    Source:  see `binary_cross_entropy_with_logits`
    """

    __constants__: list[str] = []

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average=None,
        reduce=None,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
    ) -> None:
        _Loss.__init__(self, size_average, reduce, reduction)
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _classification_losses.binary_cross_entropy_with_logits(
            input, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )


class HingeEmbeddingLoss(_Loss, torch.nn.HingeEmbeddingLoss):
    """input where target is 1, max(0, margin - input) where it is -1, reduced.

    Args:    margin: default 1
             reduction: mean (default), sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input, target: [*]   returns: their shape, or a scalar when reduced
    Source:  see `hinge_embedding_loss`
    """

    __constants__ = ["margin", "reduction"]

    def __init__(self, margin: float = 1.0, size_average=None, reduce=None, reduction: str = "mean") -> None:
        _Loss.__init__(self, size_average, reduce, reduction)
        self.margin = margin

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _ranking_losses.hinge_embedding_loss(
            input, target, margin=self.margin, reduction=self.reduction
        )


class MultiLabelMarginLoss(_Loss, torch.nn.MultiLabelMarginLoss):
    """Margins between every label and every other class, reduced.

    Args:    reduction: mean (default), sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input, target: [batch, classes] or [classes]   returns: [batch] or [], or a scalar when reduced
    Source:  see `multilabel_margin_loss`
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _ranking_losses.multilabel_margin_loss(input, target, reduction=self.reduction)


class SmoothL1Loss(_Loss, torch.nn.SmoothL1Loss):
    """Squared below beta, linear above, reduced.

    Args:    beta: where the square meets the line, default 1
             reduction: mean (default), sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input, target: [*]   returns: their shape, or a scalar when reduced
    Source:  see `smooth_l1_loss`
    """

    def __init__(self, size_average=None, reduce=None, reduction: str = "mean", beta: float = 1.0) -> None:
        _Loss.__init__(self, size_average, reduce, reduction)
        self.beta = beta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _regression_losses.smooth_l1_loss(input, target, reduction=self.reduction, beta=self.beta)


class HuberLoss(_Loss, torch.nn.HuberLoss):
    """Squared below delta, linear above, reduced.

    Args:    delta: where the square meets the line, default 1; reduction: mean (default), sum or none
    Shape:   input, target: [*]   returns: their shape, or a scalar when reduced
    Raises:  TypeError when delta is no number
    Source:  see `huber_loss`
    """

    __constants__ = ["reduction", "delta"]

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        if not isinstance(delta, (float, int)):
            raise TypeError(f"delta must be a float or int, got: {type(delta)}")
        _Loss.__init__(self, reduction=reduction)
        self.delta = delta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _regression_losses.huber_loss(input, target, reduction=self.reduction, delta=self.delta)


class SoftMarginLoss(_Loss, torch.nn.SoftMarginLoss):
    """log(1 + exp(-target * input)), reduced.

    Args:    reduction: mean (default), sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input, target: [*]   returns: their shape, or a scalar when reduced
    Source:  see `soft_margin_loss`
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _soft_margin_losses.soft_margin_loss(input, target, reduction=self.reduction)


class CrossEntropyLoss(_WeightedLoss, torch.nn.CrossEntropyLoss):
    """-sum over classes of p * weight * log(softmax(input)), reduced; p from indices or probabilities.

    Args:    weight: a factor for each class; ignore_index: a target that counts for nothing, default -100
             label_smoothing: from 0 (default) to 1
             reduction: mean (default), sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input: [batch, classes, *] or [classes]   target: [batch, *] or [] integers, or as input
             returns: [batch, *] or [], or a scalar when reduced
    Source:  see `cross_entropy`
    """

    __constants__ = ["ignore_index", "reduction", "label_smoothing"]

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average=None,
        ignore_index: int = -100,
        reduce=None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        _WeightedLoss.__init__(self, weight, size_average, reduce, reduction)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _classification_losses.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class MultiLabelSoftMarginLoss(_WeightedLoss, torch.nn.MultiLabelSoftMarginLoss):
    """Binary cross-entropy with logits, averaged over the classes, reduced.

    Args:    weight: a factor for each class
             reduction: mean (default), sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input, target: [batch, classes]   returns: [batch], or a scalar when reduced
    Source:  see `multilabel_soft_margin_loss`
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _soft_margin_losses.multilabel_soft_margin_loss(
            input, target, weight=self.weight, reduction=self.reduction
        )


class CosineEmbeddingLoss(_Loss, torch.nn.CosineEmbeddingLoss):
    """1 - cos where target is 1, max(0, cos - margin) where it is -1, reduced.

    Args:    margin: default 0
             reduction: mean (default), sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input1, input2: [batch, features] or [features]   target: [batch] or []
             returns: as target, or a scalar when reduced
    Source:  see `cosine_embedding_loss`
    """

    __constants__ = ["margin", "reduction"]

    def __init__(self, margin: float = 0.0, size_average=None, reduce=None, reduction: str = "mean") -> None:
        _Loss.__init__(self, size_average, reduce, reduction)
        self.margin = margin

    def forward(self, input1: Tensor, input2: Tensor, target: Tensor) -> Tensor:
        return _ranking_losses.cosine_embedding_loss(
            input1, input2, target, margin=self.margin, reduction=self.reduction
        )


class MarginRankingLoss(_Loss, torch.nn.MarginRankingLoss):
    """max(0, -target * (input1 - input2) + margin), reduced.

    Args:    margin: by how much the one that target (1 or -1) prefers should rank higher, default 0
             reduction: mean (default), sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input1, input2, target: broadcastable   returns: a scalar, or with reduction none their shape
    Raises:  RuntimeError when the numbers of dimensions differ
    Source:  see `margin_ranking_loss`
    """

    __constants__ = ["margin", "reduction"]

    def __init__(self, margin: float = 0.0, size_average=None, reduce=None, reduction: str = "mean") -> None:
        _Loss.__init__(self, size_average, reduce, reduction)
        self.margin = margin

    def forward(self, input1: Tensor, input2: Tensor, target: Tensor) -> Tensor:
        return _ranking_losses.margin_ranking_loss(
            input1, input2, target, margin=self.margin, reduction=self.reduction
        )


class MultiMarginLoss(_WeightedLoss, torch.nn.MultiMarginLoss):
    """Margins between the target and every other class, averaged over the classes, reduced.

    Args:    p: 1 (default) or 2; margin: default 1; weight: a factor for each class
             reduction: mean (default), sum or none; size_average, reduce: its deprecated forerunners
    Shape:   input: [batch, classes] or [classes]   target: [batch] or []
             returns: as target, or a scalar when reduced
    Raises:  ValueError unless p is 1 or 2 and weight one-dimensional
    Source:  see `multi_margin_loss`
    """

    __constants__ = ["p", "margin", "reduction"]

    def __init__(
        self,
        p: int = 1,
        margin: float = 1.0,
        weight: Tensor | None = None,
        size_average=None,
        reduce=None,
        reduction: str = "mean",
    ) -> None:
        _WeightedLoss.__init__(self, weight, size_average, reduce, reduction)
        if p not in (1, 2):
            raise ValueError("only p == 1 and p == 2 supported")
        if weight is not None and weight.dim() != 1:
            raise ValueError(
                f"MultiMarginLoss: expected weight to be None or 1D tensor, got {weight.dim()}D instead"
            )
        self.p = p
        self.margin = margin

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return _ranking_losses.multi_margin_loss(
            input, target, p=self.p, margin=self.margin, weight=self.weight, reduction=self.reduction
        )


class TripletMarginLoss(_Loss, torch.nn.TripletMarginLoss):
    """max(0, margin + d(anchor, positive) - d(anchor, negative)), reduced.

    Args:    margin, p, eps, swap: as `triplet_margin_loss`'s
             reduction: mean (default), sum or none; size_average, reduce: its deprecated forerunners
    Shape:   anchor, positive, negative: [batch, cols] or [cols]
             returns: [batch] or [], or a scalar when reduced
    Raises:  ValueError unless margin > 0
    Source:  see `triplet_margin_loss`
    """

    __constants__ = ["margin", "p", "eps", "swap", "reduction"]

    def __init__(
        self,
        margin: float = 1.0,
        p: float = 2.0,
        eps: float = 1e-6,
        swap: bool = False,
        size_average=None,
        reduce=None,
        reduction: str = "mean",
    ) -> None:
        _Loss.__init__(self, size_average, reduce, reduction)
        if margin <= 0:
            raise ValueError(f"TripletMarginLoss: expected margin to be greater than 0, got {margin} instead")
        self.margin = margin
        self.p = p
        self.eps = eps
        self.swap = swap

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        return _ranking_losses.triplet_margin_loss(
            anchor,
            positive,
            negative,
            margin=self.margin,
            p=self.p,
            eps=self.eps,
            swap=self.swap,
            reduction=self.reduction,
        )


class TripletMarginWithDistanceLoss(_Loss, torch.nn.TripletMarginWithDistanceLoss):
    """TripletMarginLoss with a distance of one's own (default: PairwiseDistance()).

    Args:    distance_function, margin, swap: as `triplet_margin_with_distance_loss`'s
             reduction: mean (default), sum or none
    Shape:   anchor, positive, negative: what distance_function takes
             returns: what it returns, or a scalar when reduced
    Raises:  ValueError unless margin > 0
    Source:  see `triplet_margin_with_distance_loss`
    """

    __constants__ = ["margin", "swap", "reduction"]

    def __init__(
        self,
        *,
        distance_function: Callable[[Tensor, Tensor], Tensor] | None = None,
        margin: float = 1.0,
        swap: bool = False,
        reduction: str = "mean",
    ) -> None:
        _Loss.__init__(self, reduction=reduction)
        if margin <= 0:
            raise ValueError(
                f"TripletMarginWithDistanceLoss: expected margin to be greater than 0, got {margin} instead"
            )
        self.distance_function = PairwiseDistance() if distance_function is None else distance_function
        self.margin = margin
        self.swap = swap

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        return _ranking_losses.triplet_margin_with_distance_loss(
            anchor,
            positive,
            negative,
            distance_function=self.distance_function,
            margin=self.margin,
            swap=self.swap,
            reduction=self.reduction,
        )
