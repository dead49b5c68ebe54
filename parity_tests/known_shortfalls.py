"""Rows that fall short today, each with what is known: shown as `xfailed`, and as `xpassed` once mended.

A key is the end of a test's id. Nothing is skipped: the test runs. A row that passes is taken out of here.
"""

_SDPA = "gradients through the written-out softmax exceed twice C++'s error in float32; cause suspected, not shown"
_FLOAT64 = "exceeds the float64 rule; cause not examined"
_RRELU = "training-mode rrelu draws other random numbers when traced (rrelu_with_noise_functional)"
_ONE_HOT = "one_hot without num_classes depends on data, which strict compilation refuses"
_MESSAGE = "same exception type, another message than torch's"

KNOWN_SHORTFALLS: dict[str, str] = {
    "[functional.scaled_dot_product_attention-eager-float32]": _SDPA,
    "[functional.scaled_dot_product_attention-eager-float64]": _FLOAT64,
    "[nn.TransformerDecoderLayer-eager-float64]": _FLOAT64,
    "[nn.TransformerEncoderLayer-eager-float64]": _FLOAT64,
    "[nn.TransformerEncoder-eager-float64]": _FLOAT64,
    "[nn.Transformer-eager-float64]": _FLOAT64,
    "[nn.Transformer-eager-bfloat16]": "one value differs by more than twice C++'s error; cause not examined",
    "[functional.rrelu-ir-float32]": _RRELU,
    "[functional.rrelu-python-float32]": _RRELU,
    "[functional.rrelu-numba-float32]": _RRELU,
    "[functional.rrelu-numba-bfloat16]": _RRELU,
    "[nn.RReLU-numba-float32]": _RRELU,
    "[functional.one_hot-ir-float32]": _ONE_HOT,
    "[functional.one_hot-numba-float32]": _ONE_HOT,
    "test_bad_input_raises_as_torch_does[functional.multi_margin_loss]": _MESSAGE,
    "test_bad_input_raises_as_torch_does[functional.multilabel_margin_loss]": _MESSAGE,
    "test_bad_input_raises_as_torch_does[functional.soft_margin_loss]": _MESSAGE,
}
