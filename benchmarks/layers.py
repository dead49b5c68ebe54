"""The layers suite: one layer at a time, forward and forward + backward, at three sizes of rows x cols."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compare import Work, forward_work, measure_both_ways, training_work

SIZES = [(64, 256), (2048, 768), (8192, 1024)]
VOCABULARIES = [4000, 32000]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "sigmoid": F.sigmoid,
    "tanh": F.tanh,
    "softplus": F.softplus,
    "hardswish": F.hardswish,
}


@dataclass
class Case:
    """One layer at one size.

    flops, nbytes: the least a forward and a forward + backward can do, for the share of the machine's peak
    """

    name: str
    size: str
    function: Callable
    inputs: list
    parameters: list[Tensor] = field(default_factory=list)
    flops: tuple[float, float] = (0.0, 0.0)
    nbytes: tuple[float, float] = (0.0, 0.0)


def streaming(x: Tensor) -> tuple[float, float]:
    """Least traffic of a pointwise or row-wise layer: x, y; and backward grad, x (or y), grad of x."""
    return (2.0 * x.nbytes, 5.0 * x.nbytes)


def products(multiplications: float) -> tuple[float, float]:
    """Flops of a matrix product, and with its two gradients."""
    return (2.0 * multiplications, 6.0 * multiplications)


class GeluMLP(nn.Module):
    """gelu(x W + b), cols -> cols."""

    def __init__(self, cols: int):
        super().__init__()
        self.linear = nn.Linear(cols, cols)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.linear(x))


class SwiGLU(nn.Module):
    """(silu(x W1) * (x W3)) W2, all cols -> cols; Shazeer 2020, "GLU Variants Improve Transformer"."""

    def __init__(self, cols: int):
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(cols, cols, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def row_cases(rows: int, cols: int) -> Iterator[Case]:
    """Pointwise layers, normalisations and softmax over one [rows, cols] tensor."""
    size = f"{rows}x{cols}"
    x = torch.randn(rows, cols, requires_grad=True)
    weight, bias = torch.ones(cols, requires_grad=True), torch.zeros(cols, requires_grad=True)
    functions: dict[str, Callable] = {
        **ACTIVATIONS,
        "softmax": lambda x: F.softmax(x, dim=-1),
        "log_softmax": lambda x: F.log_softmax(x, dim=-1),
        "dropout": lambda x: F.dropout(x, 0.1),
    }
    for name, function in functions.items():
        yield Case(name, size, function, [x], nbytes=streaming(x))
    yield Case("layer_norm", size, lambda x, w, b: F.layer_norm(x, (cols,), w, b), [x, weight, bias],
               nbytes=streaming(x))  # fmt: skip
    yield Case("rms_norm", size, lambda x, w: F.rms_norm(x, (cols,), w), [x, weight], nbytes=streaming(x))


def lookup_cases(rows: int, cols: int) -> Iterator[Case]:
    """Embedding and cross-entropy: indices at one end."""
    indices = torch.randint(VOCABULARIES[0], (rows,))
    table = torch.randn(VOCABULARIES[0], cols, requires_grad=True)
    row_bytes = 4.0 * rows * cols
    yield Case("embedding", f"{rows}x{cols}", F.embedding, [indices, table],
               nbytes=(2 * row_bytes, 3 * row_bytes + table.nbytes))  # fmt: skip
    for vocabulary in VOCABULARIES:
        if rows * vocabulary > 2**27:
            continue  # more than half a gigabyte of logits
        logits = torch.randn(rows, vocabulary, requires_grad=True)
        target = torch.randint(vocabulary, (rows,))
        yield Case(f"cross_entropy {vocabulary}", f"{rows}x{vocabulary}", F.cross_entropy, [logits, target],
                   nbytes=(1.0 * logits.nbytes, 3.0 * logits.nbytes))  # fmt: skip


def product_cases(rows: int, cols: int) -> Iterator[Case]:
    """Layers around a matrix product."""
    size = f"{rows}x{cols}"
    x = torch.randn(rows, cols, requires_grad=True)
    for name, module, count in [("linear+gelu", GeluMLP(cols), 1), ("swiglu", SwiGLU(cols), 3)]:
        yield Case(name, size, module, [x], list(module.parameters()), products(count * rows * cols * cols))
    if rows > 2048:
        return  # an encoder layer there takes seconds a call
    seq = min(rows, 128)
    encoder = nn.TransformerEncoderLayer(
        cols, cols // 64, 4 * cols, dropout=0.0, activation="gelu", batch_first=True
    )
    sequence = torch.randn(rows // seq, seq, cols, requires_grad=True)
    multiplications = rows * cols * cols * 12 + 2 * rows * seq * cols
    parameters = list(encoder.parameters())
    yield Case("encoder layer", size, encoder, [sequence], parameters, products(multiplications))


def attention_cases() -> Iterator[Case]:
    for shape, causal in [((4, 8, 128, 32), False), ((1, 12, 1024, 64), True)]:
        batch, heads, seq, head_dim = shape
        q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))
        multiplications = 2 * batch * heads * seq * seq * head_dim / (2 if causal else 1)
        yield Case(
            "attention causal" if causal else "attention", "x".join(map(str, shape)),
            lambda q, k, v, causal=causal: F.scaled_dot_product_attention(q, k, v, is_causal=causal),
            [q, k, v], flops=products(multiplications),
        )  # fmt: skip


def cases(quick: bool) -> Iterator[Case]:
    """Build the cases one at a time: the large ones need not be in memory together."""
    yield from attention_cases()
    for rows, cols in SIZES[:2] if quick else SIZES:
        for family in (row_cases, lookup_cases, product_cases):
            yield from family(rows, cols)


def build_work(case: Case, compiler: Callable, backward: bool) -> Work:
    function = compiler(case.function)
    if backward:
        return training_work(function, case.inputs, case.parameters)
    return forward_work(function, case.inputs)


def measure_layers(chosen: set[str], quick: bool, only: str, say: Callable[[dict], None]) -> list[dict]:
    """Time every case both ways; `say` is told each record as it comes."""
    wanted = (case for case in cases(quick) if only in case.name)
    return measure_both_ways("layers", wanted, build_work, chosen, 0.3 if quick else 1.0, say)
