"""Rows that fall short today, each with the reason: shown as `xfailed`, and as `xpassed` once mended.

An entry is a substring of a test's id. Nothing is skipped: the test runs, and its failure is counted.
"""

_SDPA = "autograd through the written-out softmax loses accuracy against C++; softmax's own backward is to be used"
_RRELU = "training-mode rrelu draws other random numbers when traced (rrelu_with_noise_functional)"
_ONE_HOT = "one_hot without num_classes depends on data: strict compilation refuses it, torch.compile breaks the graph"
_MESSAGE = "same exception type, but another message than torch's"
_MASK_ROUNDING = "float64 rounding against another C++ kernel's; the error is that of a neighbouring input"
_TABLE = "torch's own table draws inputs on which the C++ fails too (NaN), or a gradient that is straight-through"

KNOWN_SHORTFALLS: dict[str, str] = {
    "functional.scaled_dot_product_attention-eager-float32": _SDPA,
    "functional.scaled_dot_product_attention-eager-float64": _SDPA,
    "functional.scaled_dot_product_attention-numba-bfloat16": _SDPA,
    "functional.scaled_dot_product_attention.heads-numba-bfloat16": _SDPA,
    "functional.multi_head_attention_forward-numba-bfloat16": _SDPA,
    "nn.MultiheadAttention-eager-float64": _SDPA,
    "nn.TransformerDecoderLayer-eager-float64": _MASK_ROUNDING,
    "nn.TransformerEncoderLayer-eager-float64": _MASK_ROUNDING,
    "nn.TransformerEncoder-eager-float64": _MASK_ROUNDING,
    "nn.TransformerDecoder-eager-float64": _MASK_ROUNDING,
    "nn.Transformer-eager-float64": _MASK_ROUNDING,
    "nn.Transformer-eager-bfloat16": _MASK_ROUNDING,
    "functional.rrelu-ir-float32": _RRELU,
    "functional.rrelu-python-float32": _RRELU,
    "functional.rrelu-numba-": _RRELU,
    "nn.RReLU-numba-": _RRELU,
    "functional.one_hot-ir-": _ONE_HOT,
    "functional.one_hot-python-": _ONE_HOT,
    "functional.one_hot-numba-": _ONE_HOT,
    "test_bad_input_raises_as_torch_does[functional.multi_margin_loss]": _MESSAGE,
    "test_bad_input_raises_as_torch_does[functional.multilabel_margin_loss]": _MESSAGE,
    "test_bad_input_raises_as_torch_does[functional.soft_margin_loss]": _MESSAGE,
    "[functional.gumbel_softmax]": _TABLE,
    "[nn.KLDivLoss]": _TABLE,
    "test_float32_error_densely[exp]": "failed once in a full run under load; to be examined",
}
