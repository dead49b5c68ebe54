"""The elementary operations: what a pynn function may call below autograd, and nothing else.

Pointwise arithmetic, comparisons and logic, reductions, views and indexing, gather and scatter, creation,
casts, random draws and the matrix product, by ATen name without the overload; the in-place form of each
counts as well. A name missing here makes the purity test fail: add it only if it computes no more than its
group says.
"""

POINTWISE = """
    abs add addcmul bitwise_and bitwise_not bitwise_or ceil clamp clamp_max clamp_min cos div eq erf exp expm1 floor
    ge gt isnan le log log1p logical_and logical_not logical_or lt masked_fill maximum minimum mul ne neg pow
    reciprocal remainder round rsqrt rsub sgn sigmoid sign sin sqrt square sub tanh trunc where xlogy
"""
# What autograd emits for sigmoid and tanh: output * (1 - output) and 1 - output^2.
DERIVATIVES = "sigmoid_backward tanh_backward"
REDUCTIONS = "all amax amin any argmax argmin cumprod cumsum max mean min prod sum"
VIEWS = """
    alias as_strided detach diagonal expand expand_as movedim narrow permute reshape select slice split
    split_with_sizes squeeze t transpose unbind unsqueeze view _unsafe_view _reshape_alias unfold
    select_backward slice_backward value_selecting_reduction_backward
"""
INDEXING = """
    cat constant_pad_nd gather index index_add index_copy index_fill index_put index_select masked_scatter
    masked_select nonzero scatter scatter_add scatter_reduce stack tril triu flip roll repeat sort topk
"""
CREATION = """
    arange clone copy empty empty_like eye empty_strided fill full full_like linspace new_empty new_empty_strided
    new_full new_ones new_zeros ones ones_like scalar_tensor zeros zeros_like zero lift_fresh _to_copy
    _efficientzerotensor _foreach_copy
    _sparse_coo_tensor_unsafe _sparse_coo_tensor_with_dims_and_tensors
"""
RANDOM = "bernoulli exponential normal rand rand_like randn randn_like uniform"
PRODUCT = "mm bmm matmul mv dot"
# Reads sizes, dtypes or single values, computes nothing.
READING = "_local_scalar_dense can_cast equal is_same_size is_nonzero item promote_types"

ELEMENTARY = frozenset(
    " ".join(
        [POINTWISE, DERIVATIVES, REDUCTIONS, VIEWS, INDEXING, CREATION, RANDOM, PRODUCT, READING]
    ).split()
)


def is_elementary(aten_name: str) -> bool:
    """aten_name: add, or add_ for the in-place form."""
    return aten_name in ELEMENTARY or (aten_name.endswith("_") and aten_name[:-1] in ELEMENTARY)
