"""Sparse tensors, where the C++ of torch.nn has kernels for them (torch's test_sparse.py, test_sparse_csr.py)."""

import pytest
import torch
import torch.nn.functional as C
from torch import Tensor

import pynn
import pynn.functional as F

X = torch.tensor([[0.5, 0, 0, -2], [0, 0, -1, 3], [0, 0, 0, 0], [1, 0, 0, 2]])
BLOCKS = {torch.sparse_bsr: (2, 2), torch.sparse_bsc: (2, 2)}
LAYOUTS = [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc]


def sparse(layout: torch.layout, dtype: torch.dtype = torch.float32) -> Tensor:
    return X.to(dtype).to_sparse(layout=layout, blocksize=BLOCKS.get(layout))


def same(own: Tensor, cpp: Tensor) -> bool:
    """The same places are stored, with the same values."""
    return own.layout == cpp.layout and own.dtype == cpp.dtype and str(own) == str(cpp)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64], ids=str)
def test_relu_is_of_the_values(layout: torch.layout, dtype: torch.dtype) -> None:
    """clamp has no kernel for sparse tensors: test_sparse_consistency_nn_functional_relu."""
    x = sparse(layout, dtype)
    assert same(F.relu(x), C.relu(x))
    assert same(pynn.ReLU()(x), torch.nn.ReLU()(x))
    for call in (F.relu_, pynn.ReLU(inplace=True)):
        own = x.clone()
        assert call(own) is own
        assert same(own, C.relu(x))


def test_relu_of_what_is_stored_twice() -> None:
    x = torch.sparse_coo_tensor([[0, 0, 1]], [1.0, -3.0, 2.0], (3,))
    assert same(F.relu(x), C.relu(x))
    for functions in (C, F):
        with pytest.raises(RuntimeError, match="relu_ requires coalesced input"):
            functions.relu_(x)


@pytest.mark.parametrize(
    "x",
    [
        torch.sparse_coo_tensor((), dtype=torch.float32),
        torch.sparse_coo_tensor(torch.empty(2, 0, dtype=torch.int64), torch.empty(0), (0, 0)),
        torch.sparse_coo_tensor([[2, 0]], torch.tensor([[1.0, -2], [-3, 4]]), (3, 2)),
    ],
    ids=["scalar", "empty", "rows"],
)
def test_relu_of_other_shapes(x: Tensor) -> None:
    """test_sparse_zeros and test_sparse_zero_dims."""
    assert same(F.relu(x), C.relu(x))


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr], ids=str)  # C++ has no others
def test_gradients_of_sparse_relu(layout: torch.layout) -> None:
    """test_sparse_fn_grad: where no gradient comes in, none goes out, rather than zeros."""
    x = sparse(layout, torch.float64).requires_grad_()

    def rectified(x: Tensor) -> Tensor:
        return F.relu(x).to_dense(masked_grad=True)

    assert torch.autograd.gradcheck(rectified, x, masked=True)
    weights = torch.arange(16.0, dtype=torch.float64).view(4, 4)
    own, cpp = (
        torch.autograd.grad((functions.relu(x).to_dense() * weights).sum(), x)[0] for functions in (F, C)
    )
    assert same(own, cpp)


class Forgetful(torch.autograd.Function):
    """The identity, without a gradient."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> None:
        return None


@pytest.mark.parametrize("name", ["relu", "gelu", "softplus", "hardtanh"])
def test_no_gradient_in_none_out(name: str) -> None:
    """Of dense tensors too, as of C++."""
    x = torch.randn(3, requires_grad=True)
    for functions in (C, F):
        out = Forgetful.apply(getattr(functions, name)(x))
        assert torch.autograd.grad(out.sum(), x, allow_unused=True) == (None,)


def test_embedding_in_a_sparse_table() -> None:
    """Which torch looks up in for a list of indices, not for a matrix of them."""
    table, indices = torch.randn(5, 3).to_sparse(), torch.tensor([4, 0, 4])
    cpp, own = C.embedding(indices, table), F.embedding(indices, table)
    assert own.layout == cpp.layout == torch.sparse_coo and torch.equal(own.to_dense(), cpp.to_dense())
