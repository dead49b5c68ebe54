"""Every path under torch.nn can be imported under pynn, and the helpers of torch.nn.utils work on pynn layers.

The paths are read off the installed torch: a submodule that a torch release adds is a row here, and fails by
its name if pynn does not offer it.
"""

import importlib
import inspect
import pkgutil
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.utils.parametrizations
import torch.nn.utils.prune
import torch.nn.utils.stateless

import pynn

pytestmark = pytest.mark.slow  # `make check` leaves the whole file to `make test`

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    PATHS = sorted(entry.name for entry in pkgutil.walk_packages(torch.nn.__path__, "torch.nn."))


def load(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(path)


def torch_module(path):
    try:
        return load(path)
    except ImportError as error:
        pytest.skip(f"torch itself cannot import it: {error}")


@pytest.mark.parametrize("path", PATHS)
def test_path_can_be_imported(path):
    theirs, own = torch_module(path), load("pynn" + path.removeprefix("torch.nn"))
    defined = [name for name, value in vars(theirs).items() if not inspect.ismodule(value)]
    names = getattr(theirs, "__all__", None) or [name for name in defined if not name.startswith("_")]
    assert [name for name in names if not hasattr(own, name)] == []
    helpers = [
        n for n in defined if n.startswith("_") and n[1:2] != "_" and not inspect.isbuiltin(vars(theirs)[n])
    ]
    assert [
        name for name in helpers if not hasattr(own, name)
    ] == []  # _MaxPoolNd, _no_grad_trunc_normal_ ...
    is_shared = own is theirs
    assert is_shared or own.__name__.startswith("pynn."), f"{path} was run a second time as {own.__name__}"
    assert is_shared or own.__file__ != theirs.__file__, f"{path} was run a second time as {own.__name__}"


@pytest.mark.parametrize("path", [path for path in PATHS if path.startswith("torch.nn.modules.")])
def test_family_holds_the_layers_of_pynn(path):
    """pynn.modules.conv.Conv2d is pynn.Conv2d."""
    theirs, own = torch_module(path), load("pynn" + path.removeprefix("torch.nn"))
    for name, value in vars(theirs).items():
        is_own = inspect.isclass(value) and issubclass(value, torch.nn.Module) and value.__module__ == path
        if is_own and name in torch.nn.modules.__all__:
            if getattr(pynn, name).__module__.startswith("pynn."):
                assert getattr(own, name) is getattr(pynn, name), f"{own.__name__}.{name} is torch's"


def test_shared_module_keeps_its_own_spec():
    """Imported under a second name, a module must still reload and resolve relative imports as before."""
    module = load("pynn.quantized.dynamic.modules.linear")
    assert module.__spec__.name == module.__name__ == "torch.nn.quantized.dynamic.modules.linear"


def test_helper_that_torch_lacks_is_refused_under_the_name_asked_for():
    with pytest.raises(AttributeError, match=r"'pynn\.modules\.pooling' has no attribute '_no_such_thing'"):
        pynn.modules.pooling._no_such_thing  # noqa: B018


def test_path_that_torch_lacks_is_refused_under_the_name_asked_for():
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'pynn\.utils\.no_such_thing'"):
        importlib.import_module("pynn.utils.no_such_thing")


IMPORTS = """
from pynn.modules.conv import Conv2d
from pynn.utils.rnn import pack_padded_sequence
from pynn.attention.experimental._paged_attention import PagedAttention
from pynn.modules.utils import _pair
"""


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in IMPORTS.splitlines() if line.startswith("from")])
def test_statement_works_in_a_fresh_process(line):
    """Where nothing has loaded the submodule before."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", line], check=True)


# ---- helpers of torch.nn.utils ---------------------------------------------------------------------------


def same_weights(layer):
    layer = layer()
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            parameter.copy_(torch.linspace(-1, 1 + number, parameter.numel()).reshape(parameter.shape))
    return layer


def parametrized(utils, layer):
    utils.parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


def pruned(utils, layer):
    return utils.prune.l1_unstructured(layer, "weight", amount=0.5)


def pruned_for_good(utils, layer):
    return utils.prune.remove(utils.prune.ln_structured(layer, "weight", 0.5, n=2, dim=0), "weight")


def called_with_other_weights(utils, layer):
    class Stateless(torch.nn.Module):
        def forward(self, x):
            values = {name: value * 2 for name, value in layer.named_parameters()}
            return torch.func.functional_call(layer, values, (x,))

    return Stateless()


def weight_normalised(utils, layer):
    return utils.parametrizations.weight_norm(layer)


def orthogonal(utils, layer):
    return utils.parametrizations.orthogonal(layer)


def channels_last(utils, layer):
    return utils.convert_conv2d_weight_memory_format(layer, torch.channels_last)


def without_initialisation(utils, layer):
    made = utils.skip_init(type(layer), *LAYERS[type(layer).__name__][1])
    made.load_state_dict(layer.state_dict())
    return made


def through_one_vector(utils, layer):
    vector = utils.parameters_to_vector(layer.parameters())
    utils.vector_to_parameters(vector + 1, layer.parameters())
    return layer


class Doubled(torch.nn.Module):
    def forward(self, x):
        return 2 * x


LAYERS = {
    "Linear": ((2, 4), (4, 4)),
    "Conv2d": ((2, 3, 5, 5), (3, 4, 3)),
    "LayerNorm": ((2, 6), (6,)),
    "Embedding": (None, (6, 3)),
}
HELPERS = [
    (parametrized, LAYERS),
    (pruned, LAYERS),
    (pruned_for_good, ("Linear", "Conv2d", "Embedding")),
    (called_with_other_weights, LAYERS),
    (weight_normalised, ("Linear", "Conv2d")),
    (orthogonal, ("Linear",)),
    (channels_last, ("Conv2d",)),
    (without_initialisation, ("Linear", "Conv2d", "LayerNorm", "Embedding")),
    (through_one_vector, LAYERS),
]


@pytest.mark.parametrize(
    "helper, layer", [pytest.param(h, n, id=f"{h.__name__}-{n}") for h, names in HELPERS for n in names]
)
def test_helper_of_utils_works_on_a_pynn_layer(helper, layer):
    shape, arguments = LAYERS[layer]
    x = torch.randint(6, (2, 3)) if shape is None else torch.randn(shape)
    results = []
    for nn in (torch.nn, pynn):
        torch.manual_seed(0)
        built = helper(nn.utils, same_weights(lambda nn=nn: getattr(nn, layer)(*arguments)))
        results.append((built(x), list(built.state_dict())))
    torch.testing.assert_close(results[1][0], results[0][0])
    assert results[1][1] == results[0][1]


@pytest.mark.filterwarnings("ignore")
def test_stateless_functional_call_of_old():
    layer, x = pynn.Linear(3, 2), torch.randn(4, 3)
    values = {"weight": torch.zeros(2, 3), "bias": torch.ones(2)}
    assert torch.equal(pynn.utils.stateless.functional_call(layer, values, x), torch.ones(4, 2))
