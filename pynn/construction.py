"""How the constructor of a layer begins."""

from torch.nn import Module


def init_module(cls: type, layer: Module) -> None:
    """What super().__init__() calls in the torch class that `cls` stands for: as a rule Module.__init__.

    cls:   the class of pynn whose constructor this is, as in super(cls, layer)
    layer: self

    super().__init__() in `cls` itself would run torch's constructor, which makes the parameters and draws their
    values. Module.__init__(layer) would miss a further base of a user's class, `class Tagged(Linear, Tag)`, and
    Dynamo refuses it where a compiled function makes a layer.
    """
    order = type(layer).__mro__
    if cls in order:
        for base in order[order.index(cls) + 1 :]:
            if Module in base.__bases__:
                return super(base, layer).__init__()
    # a class over torch's own, older than install(), that calls torch.nn.Linear.__init__(self, ...) by name
    return Module.__init__(layer)
