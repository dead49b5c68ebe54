"""What inspection sees of pynn is what it sees of torch: read off torch itself, so that a new name fails here.

Numbers are the business of test_parity; here it is names, signatures, constants, versions, dtypes and docstrings.
"""

import copy
import inspect
import warnings

import pytest
import torch
import torch.nn.functional as F

import pynn
from parity_tests.test_pynn_package import CONSTRUCTORS, PAIRS, STACKS, build, has_uninitialised_buffers
from parity_tests.torch_version import assert_torchs_parameters, shown
from pynn.counterparts import function_pairs
from pynn.coverage import functional_names
from pynn.definitions import PUBLIC

CLASSES = pytest.mark.parametrize("name", PAIRS)
FUNCTIONS = sorted(name for name in PUBLIC if hasattr(F, name))


ATEN_NAMES = {"logsigmoid": "log_sigmoid"}


def without_signature(name: str) -> bool:
    try:
        inspect.signature(getattr(F, name))
    except ValueError:
        return True
    return False


# ---- functions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_has_torchs_parameters(name):
    """torch's Python functions by their signature, its builtins by the schema of the operation."""
    if not without_signature(name):
        assert_torchs_parameters(getattr(pynn.functional, name), getattr(F, name))
        return
    own = inspect.signature(getattr(pynn.functional, name)).parameters.values()
    schemas = torch._C._jit_get_schemas_for_operator(f"aten::{ATEN_NAMES.get(name, name)}")
    found = [p.name for p in own]
    # what the schema has beyond them (elu_'s scales, generators) is not offered in torch.nn.functional
    names = [[argument.name for argument in schema.arguments][: len(own)] for schema in schemas]
    assert found in [["input" if n == "self" else n for n in each] for each in names], f"{found}: {names}"


@pytest.mark.parametrize("name", sorted({*FUNCTIONS, *functional_names()} & set(dir(pynn.functional))))
def test_function_has_a_docstring(name):
    text = inspect.getdoc(getattr(pynn.functional, name))
    assert text and len(text.splitlines()[0]) > 10


def test_every_torch_function_is_paired_once():
    pairs = function_pairs()
    assert len({id(own) for own in pairs.values()}) == len(pairs)


# ---- layers ----------------------------------------------------------------------------------------------


@CLASSES
def test_layer_has_torchs_constants_version_and_methods(name):
    original, own = PAIRS[name]
    assert getattr(own, "__constants__", []) == getattr(original, "__constants__", [])
    assert own._version == original._version
    for method, value in vars(original).items():
        if inspect.isfunction(value) and not method.startswith("__"):
            expected = list(inspect.signature(value).parameters)
            assert list(inspect.signature(getattr(own, method)).parameters) == expected, method


@CLASSES
def test_layer_has_a_docstring_of_its_own(name):
    own = PAIRS[name][1]
    assert own.__doc__ and own.__doc__ != PAIRS[name][0].__doc__


def takes_factory_arguments(name):
    return {"device", "dtype"} <= set(inspect.signature(PAIRS[name][0].__init__).parameters)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [n for n in PAIRS if takes_factory_arguments(n) and n not in STACKS])
def test_layer_passes_on_device_and_dtype(name):
    for kwargs in ({"dtype": torch.float64}, {"device": "meta"}, {"device": "meta", "dtype": torch.bfloat16}):
        theirs, ours = (cls(*CONSTRUCTORS.get(name, ()), **kwargs) for cls in PAIRS[name])

        def described(layer):
            tensors = [*layer.named_parameters(), *layer.named_buffers()]
            return [(n, type(t), t.dtype, t.device) for n, t in tensors]

        assert described(ours) == described(theirs)


@pytest.mark.filterwarnings("ignore")
@CLASSES
def test_layer_has_torchs_state_dict_versions_and_hooks(name):
    theirs, ours = build(name, 0), build(name, 1)
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    for kind in ("_load_state_dict_pre_hooks", "_state_dict_hooks", "_forward_pre_hooks", "_backward_hooks"):
        assert len(getattr(ours, kind)) == len(getattr(theirs, kind)), kind


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [n for n in PAIRS if n.startswith("Lazy")])
def test_lazy_layer_becomes_pynns_own(name):
    theirs, ours = build(name, 0), build(name, 1)
    assert ours.cls_to_become.__module__.startswith("pynn.")
    assert [type(p) for p in ours.parameters()] == [type(p) for p in theirs.parameters()]
    x = torch.randn(2, 3, *[9] * (int(name[-2]) if name[-1] == "d" else 0))
    twin = build(name, 1) if has_uninitialised_buffers(ours) else copy.deepcopy(ours)
    for layer in (theirs, ours, twin):
        torch.manual_seed(0)
        layer(x)
    assert type(ours).__name__ == type(theirs).__name__ and type(ours).__module__.startswith("pynn.")
    assert shown(ours) == shown(theirs)
    parameters = dict(theirs.named_parameters())
    for key, value in theirs.state_dict().items():
        equal = torch.equal if key in parameters else torch.allclose  # running statistics round
        assert equal(value, ours.state_dict()[key]) and equal(value, twin.state_dict()[key])


@pytest.mark.filterwarnings("ignore")
def test_deprecated_names_warn_as_torchs_do():
    for name in [
        n for n in torch.nn.modules.__all__ if "deprecated" in (getattr(torch.nn, n).__doc__ or "").lower()
    ]:
        caught = []
        for cls in PAIRS.get(name, ()):
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                cls(*CONSTRUCTORS.get(name, ()))
            caught.append([(w.category, str(w.message)) for w in seen])
        assert not caught or caught[0] == caught[1], name
