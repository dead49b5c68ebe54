"""Arguments that are NaN, infinite or too large, and queries without a key: what torch's test_nn.py of 2.13 found
with pynn installed; each test names its origin."""

import itertools
import math

import pytest
import torch

import pynn
from parity_tests.test_refusals import assert_same

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_softshrink_takes_what_the_dtype_holds(dtype):
    """test_softshrink_lambda_dtype_range."""
    for lambd in (0, 65504.0, 65507.0, 3.4e38, 3.5e38, -1.0, INF, NAN):
        assert_same("softshrink", torch.tensor([-2.0, 0.0, 2.0], dtype=dtype), lambd)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "bounds", [(INF, 0.3), (0.1, INF), (NAN, 0.3), (0.1, NAN), (-INF, 0.3), (0.5, 0.3)], ids=str
)
def test_rrelu_takes_finite_bounds(bounds, training):
    """test_rrelu_bounds_validation; asked before the dtype is."""
    for x in (torch.tensor([2.0]), torch.tensor([2])):
        assert_same("rrelu", x, *bounds, training)
    if not (training and INF in map(abs, bounds)):  # where torch draws no slope for a positive number
        assert_same("rrelu_", torch.tensor([2.0]), *bounds, training)


def test_rrelu_draws_the_same_under_a_gradient():
    """test_grad_nn_functional_rrelu of functorch/test_ops.py: one number for each that is not positive."""
    x = torch.randn(20)
    torch.manual_seed(0)
    expected = torch.nn.functional.rrelu(x, 0.0, 1.0, training=True)
    for transform in (lambda f, x: torch.func.vjp(f, x)[0], lambda f, x: torch.func.jvp(f, (x,), (x,))[0]):
        torch.manual_seed(0)
        assert torch.equal(
            transform(lambda x: pynn.functional.rrelu(x, 0.0, 1.0, training=True), x), expected
        )


@pytest.mark.parametrize("name", ["margin_ranking_loss", "cosine_embedding_loss"])
def test_tangents_of_scalars_keep_their_dtype(name):
    """test_jvp_nn_functional_margin_ranking_loss of functorch/test_ops.py: a number added made them float64."""
    x = torch.randn(5) if name == "cosine_embedding_loss" else torch.tensor(0.5)
    rest = torch.randn_like(x), torch.tensor(-1.0), 0.25
    cpp, own = (
        torch.func.jvp(lambda x, f=functions: getattr(f, name)(x, *rest), (x,), (torch.ones_like(x),))
        for functions in (torch.nn.functional, pynn.functional)
    )
    torch.testing.assert_close(own, cpp)


@pytest.mark.parametrize("name", ["elu", "selu", "gelu", "mish", "softplus", "hardswish", "leaky_relu"])
def test_second_tangents_of_scalars_keep_their_dtype(name):
    """test_jvpvjp_nn_functional_elu of functorch/test_ops.py."""
    x, one = torch.tensor(-0.7), torch.ones(())
    cpp, own = (
        torch.func.jvp(torch.func.grad(getattr(functions, name)), (x,), (one,))
        for functions in (torch.nn.functional, pynn.functional)
    )
    torch.testing.assert_close(own, cpp)


def test_tangents_of_smoothed_labels_keep_their_dtype():
    """As above, with a number that multiplies the mean."""
    x, target = torch.randn(3, 4), torch.tensor([1, 0, 3])
    cpp, own = (
        torch.func.jvp(lambda x, f=f: f.cross_entropy(x, target, label_smoothing=0.1), (x,), (x,))
        for f in (torch.nn.functional, pynn.functional)
    )
    torch.testing.assert_close(own, cpp)


@pytest.mark.parametrize("slope", [INF, -INF, NAN])
def test_leaky_relu_multiplies_the_negative_alone(slope):
    """inf * 0 made NaN of positive numbers."""
    assert_same("leaky_relu", torch.tensor([2.0, -1.0, 0.0, INF, NAN]), slope)


@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float16), (torch.float32, torch.float16)], ids=str)
def test_cosine_similarity_takes_no_negative_eps(dtypes):
    """test_cosine_similarity_mixed_precision; an eps beyond the dtype is infinite."""
    x1, x2 = (torch.ones(3, 2, dtype=dtype) for dtype in dtypes)
    for eps in (-1.0, -1e300, NAN, INF, 9.7e23):
        assert_same("cosine_similarity", x1, x2, 0, eps)


@pytest.mark.parametrize("value", [INF, NAN])
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, 1.5, 2.0, INF])
def test_pdist_of_infinite_rows(p, value):
    """test_pdist_inf_nan_propagation, and the gradients."""
    gradients = []
    for functions in (torch.nn.functional, pynn.functional):
        x = torch.tensor([[value, 1.0, 2.0], [0.0, value, 1.0], [1.0, 2.0, 3.0]], requires_grad=True)
        out = functions.pdist(x, p)
        out.sum().backward()
        gradients.append((out, x.grad))
    torch.testing.assert_close(*gradients, equal_nan=True)
    assert_same("pdist", torch.full((2, 2), value), p)


def test_sizes_that_overflow():
    """test_pixel_shuffle_unshuffle, test_unfold_invalid_arg; a fold without a batch counts dimensions as with one."""
    image = torch.randn(2, 16, 9, 3)
    for factor in (545460846592, 2**62, 3037000500, 3037000499):
        assert_same("pixel_shuffle", image, factor)
    for kernel, rows in itertools.product((7318349394477056, 2**32, 2**31, (2**40, 2**20), 2), (3, 12)):
        assert_same("fold", torch.randn(rows, 7), 16, kernel)


def instance_norm(functions, x, of_weight, of_mean, of_variance, training):
    """The result with the statistics it leaves, or the error's words."""
    statistics = torch.zeros(3, dtype=of_mean), torch.ones(3, dtype=of_variance)
    weight = None if of_weight is None else torch.ones(3, dtype=of_weight)
    try:
        return functions.instance_norm(x, *statistics, weight, None, training), *statistics
    except RuntimeError as error:
        return str(error)


@pytest.mark.parametrize("training", [True, False])
def test_instance_norm_takes_statistics_of_another_dtype(training):
    """test_normalization_mixed_dtype: they are cast, if the mean's dtype is another one than the weight's."""
    floats = (torch.float32, torch.float64, torch.bfloat16)
    for of_input, *others in itertools.product(floats, (None, *floats), floats, floats):
        x = torch.randn(2, 3, 4, dtype=of_input)
        cpp, own = (
            instance_norm(functions, x, *others, training)
            for functions in (torch.nn.functional, pynn.functional)
        )
        if isinstance(cpp, str):
            assert own == cpp
        else:
            assert [x.dtype for x in own] == [x.dtype for x in cpp]
            if torch.bfloat16 not in (of_input, *others):  # the rows of test_parity measure rounding
                torch.testing.assert_close(own, cpp)


@pytest.mark.parametrize("p", [NAN, -1.0, 2.0])
@pytest.mark.parametrize("name", ["dropout", "alpha_dropout", "feature_alpha_dropout", "dropout1d"])
def test_dropout_of_no_probability(name, p):
    """NaN passed where nothing was drawn."""
    for training in (True, False):
        assert_same(name, torch.ones(2, 3, 4), p, training)


@pytest.mark.parametrize("number", [NAN, -1.0, -INF])
def test_losses_of_unusual_numbers(number):
    """A label_smoothing that is not positive is none; NaN is no beta and no delta."""
    x, target = torch.tensor([[2.0, -1.0, 0.0]]), torch.tensor([[0.2, 0.3, 0.5]])
    assert_same("cross_entropy", x, torch.tensor([1]), label_smoothing=number)
    assert_same("cross_entropy", x, target, label_smoothing=number)
    assert_same("smooth_l1_loss", x, target, beta=number)
    assert_same("huber_loss", x, target, delta=number)


def masks(kind):
    hidden = {
        "src_key_padding_mask": torch.zeros(2, 3, dtype=torch.bool),
        "src_mask": torch.zeros(3, 3, dtype=torch.bool),
    }
    hidden["src_key_padding_mask"][0] = True
    hidden["src_mask"][1] = True
    return {name: mask for name, mask in hidden.items() if kind in (name, "both")}


@pytest.mark.parametrize("kind", ["src_key_padding_mask", "src_mask", "both"])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("change", ["", "train", "hook", "eps", "tanh", "seq_first", "one_head"])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_queries_without_a_key_in_evaluation(kind, norm_first, with_gradients, change):
    """test_transformerencoderlayer: NaN on torch's fast path, 0 from the attention off it."""
    outcomes = []
    for nn in (torch.nn, pynn):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(
            4,
            1 if change == "one_head" else 2,
            8,
            dropout=0.0,
            activation=torch.tanh if change == "tanh" else "relu",
            batch_first=change != "seq_first",
            norm_first=norm_first,
        ).train(change == "train")
        if change == "hook":
            layer.linear1.register_forward_hook(lambda *_: None)
        if change == "eps":
            layer.norm1.eps = 1e-3
        x = torch.randn(2, 3, 4)
        if change == "seq_first":
            x = x.transpose(0, 1)
        with torch.set_grad_enabled(with_gradients):
            outcomes.append(layer(x, **masks(kind)).detach())
    torch.testing.assert_close(*outcomes, equal_nan=True)


@pytest.mark.parametrize("kind", ["src_key_padding_mask", "src_mask"])
@pytest.mark.parametrize("is_float", [True, False])
@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_without_a_key_in_evaluation(kind, is_float, with_gradients, need_weights):
    """As the layer above; with weights torch gives NaN on every path."""
    names = {"src_key_padding_mask": "key_padding_mask", "src_mask": "attn_mask"}
    given = {names[name]: mask for name, mask in masks(kind).items()}
    if is_float:
        given = {name: torch.zeros(mask.shape).masked_fill_(mask, -INF) for name, mask in given.items()}
    outcomes = []
    for nn in (torch.nn, pynn):
        torch.manual_seed(0)
        attention = nn.MultiheadAttention(4, 2, batch_first=True).eval()
        x = torch.randn(2, 3, 4)
        with torch.set_grad_enabled(with_gradients):
            outcomes.append(attention(x, x, x, need_weights=need_weights, **given))
    torch.testing.assert_close(*outcomes, equal_nan=True)


@pytest.mark.parametrize(
    "mask", [None, torch.ones(4, 4, dtype=torch.bool).tril(), torch.randn(4, 4)], ids=["", "bool", "float"]
)
@pytest.mark.parametrize("size", [(2, 3, 4, 0), (2, 3, 0, 5), (0, 3, 4, 5)])
def test_attention_of_nothing(size, mask):
    """test_sdpa_zero_sized_tensors of test_transformers.py: 0 times an infinite scale was NaN."""
    if mask is not None and size[2] == 0:
        mask = mask[:0, :0]
    outcomes = []
    for functions in (torch.nn.functional, pynn.functional):
        query, key = (torch.zeros(size, requires_grad=True) for _ in range(2))
        value = torch.ones(*size[:3], 2, requires_grad=True)
        out = functions.scaled_dot_product_attention(query, key, value, mask)
        out.sum().backward()
        outcomes.append((out, query.grad, key.grad, value.grad))
    torch.testing.assert_close(*outcomes)


@pytest.fixture
def without_fallback():
    torch._C._functorch._set_vmap_fallback_enabled(False)
    yield
    torch._C._functorch._set_vmap_fallback_enabled(True)


VMAPPED = {
    "conv1d": lambda F, x: F.conv1d(x[:, :, 0], x[0, :, None, 0, :2], groups=3),
    "conv2d": lambda F, x: F.conv2d(x, x[0, :, None, :2, :2], groups=3),
    "conv_transpose2d": lambda F, x: F.conv_transpose2d(x, x[0, :, None, :2, :2], groups=3),
    "batch_norm": lambda F, x: F.batch_norm(x, None, None, training=True),
}


@pytest.mark.parametrize("name", VMAPPED)
@pytest.mark.parametrize("in_dim", [0, 2, 4])
def test_batches_without_a_loop(name, in_dim, without_fallback):
    """test_op_has_batch_rule_nn_functional_conv2d of functorch/test_vmap.py and its sisters."""

    def function(functions, x):
        return VMAPPED[name](functions, x).sin()

    x = torch.randn(2, 3, 4, 5, 3, dtype=torch.double).movedim(-1, in_dim)
    cpp, own = (
        torch.func.vmap(
            lambda x, f=functions: (function(f, x), torch.func.grad(lambda y: function(f, y).sum())(x)),
            in_dim,
        )(x)
        for functions in (torch.nn.functional, pynn.functional)
    )
    torch.testing.assert_close(own, cpp)


def test_gradient_of_a_soft_margin_loss_whose_targets_were_vmapped():
    """test_vjpvmap_nn_functional_soft_margin_loss of functorch/test_ops.py: the target outlived its vmap."""
    x, target = torch.randn(3, 4), torch.tensor([1.0, -1.0]).repeat(3, 2)
    cpp, own = (
        torch.func.grad(lambda x, f=f: torch.func.vmap(f.soft_margin_loss)(x, target).sum())(x)
        for f in (torch.nn.functional, pynn.functional)
    )
    torch.testing.assert_close(own, cpp)


@pytest.mark.parametrize("name", ["weight", "pos_weight"])
def test_gradient_of_the_weights_of_logits_within_functorch(name):
    """C++'s binary_cross_entropy_with_logits has it there only (jacrev of op_db's samples)."""
    x, target, weight = torch.randn(3, 4), torch.rand(3, 4), torch.rand(4)

    def loss(functions, weight):
        return functions.binary_cross_entropy_with_logits(x, target, **{name: weight})

    cpp, own = (
        torch.func.grad(lambda w, f=f: loss(f, w))(weight) for f in (torch.nn.functional, pynn.functional)
    )
    torch.testing.assert_close(own, cpp)
    for functions in (torch.nn.functional, pynn.functional):
        with pytest.raises(RuntimeError, match="not differentiable"):
            loss(functions, weight.clone().requires_grad_())


VECTORISED = {
    "conv1d": lambda F, x: F.conv1d(x, x[:, :, :2]),
    "conv_transpose1d": lambda F, x: F.conv_transpose1d(x, x[:, :, :2]),
    "avg_pool1d": lambda F, x: F.avg_pool1d(x, 2),
    "adaptive_avg_pool2d": lambda F, x: F.adaptive_avg_pool2d(x, (1, 2)),
    "interpolate": lambda F, x: F.interpolate(x, 2, mode="area"),
    "max_unpool1d": lambda F, x: F.max_unpool1d(x, torch.tensor([0, 3, 4, 7]).expand(2, 2, 4), 2),
    "batch_norm": lambda F, x: F.batch_norm(x, None, None, x[0, :, 0], training=True),
    "instance_norm": lambda F, x: F.instance_norm(x),
    "group_norm": lambda F, x: F.group_norm(x, 1, x[0, :, 0]),
}


@pytest.mark.parametrize("name", VECTORISED)
def test_vectorised_jacobians_forwards(name):
    """What gradcheck(check_batched_forward_grad=True) of test_ops_fwd_gradients.py needs: the older vmap's tangents."""
    x = torch.randn(2, 2, 4, dtype=torch.double)
    cpp, own = (
        torch.autograd.functional.jacobian(
            lambda x, f=f: VECTORISED[name](f, x), x, vectorize=True, strategy="forward-mode"
        )
        for f in (torch.nn.functional, pynn.functional)
    )
    torch.testing.assert_close(own, cpp)


@pytest.mark.parametrize("name", ["dropout", "alpha_dropout", "feature_alpha_dropout", "dropout2d"])
@pytest.mark.parametrize("randomness", ["same", "different"])
@pytest.mark.parametrize("in_dim", [0, None])
def test_dropout_of_what_vmap_does_not_batch(name, randomness, in_dim):
    """TestRandomness of functorch/test_vmap.py: each of the batch draws masks of its own, the same as in C++."""
    x, outcomes = torch.ones(2, 3, 4, 4), []
    for functions in (torch.nn.functional, pynn.functional):
        torch.manual_seed(0)
        drop = getattr(functions, name)
        mapped = torch.func.vmap(lambda x, _, f=drop: f(x, training=True), (in_dim, 0), randomness=randomness)
        outcomes.append(mapped(x, torch.zeros(2)))
    assert torch.equal(outcomes[1][0], outcomes[1][1]) == (randomness == "same")
    torch.testing.assert_close(*reversed(outcomes))


@pytest.mark.parametrize("name", ["normalize", "pairwise_distance"])
def test_complex_norms_forwards(name):
    """test_fn_fwgrad_bwgrad_nn_functional_normalize of test_ops_fwd_gradients.py: the tangent was complex."""
    x, other = (torch.randn(3, 2, dtype=torch.complex128, requires_grad=True) for _ in range(2))
    inputs = (x,) if name == "normalize" else (x, other)
    function = getattr(pynn.functional, name)
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize(
    "name,shape",
    [
        ("avg_pool1d", (0, 3, 6)),
        ("avg_pool2d", (0, 3, 4, 4)),
        ("avg_pool3d", (0, 3, 4, 4, 4)),
        ("unfold", (0, 3, 4, 4)),
    ],
)
def test_jacobian_of_no_images(name, shape):
    """jacrev of op_db's samples with an empty batch: a vmap of none."""
    own, cpp = (
        torch.func.jacrev(lambda x, f=getattr(functions, name): f(x, 2))(torch.ones(shape))
        for functions in (pynn.functional, torch.nn.functional)
    )
    assert own.shape == cpp.shape


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("dims", [2, 3])
def test_places_that_a_map_takes_to_the_middle(dims, align_corners):  # torch's export/test_export.py
    """x + y + 1 is 0 or a rounding, which no relative tolerance allows for: the grid is rounded as C++'s is."""
    theta, size = torch.ones(1, dims, dims + 1), (1, 3, *[24] * dims)
    ours, theirs = (
        nn.functional.affine_grid(theta, size, align_corners=align_corners) for nn in (pynn, torch.nn)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)
