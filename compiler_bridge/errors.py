"""One class per mistake. Every message says what was received, what is required and how to mend it."""

from __future__ import annotations


class BridgeError(Exception):
    """Anything the compiler reports about a graph, a program or its own cache.

    Args:  received: the offending value, in words
           required: what would have been accepted
           fix:      what the user can do
    """

    def __init__(self, received: str, required: str = "", fix: str = ""):
        self.received = received
        self.required = required
        self.fix = fix
        parts = [received]
        if required:
            parts.append(f"required: {required}")
        if fix:
            parts.append(f"fix: {fix}")
        super().__init__("; ".join(parts))


class Unsupported(BridgeError):
    """The graph holds something the compiler has no kernels for; it can run through ATen instead."""


class UnsupportedOp(Unsupported):
    """No lowering for an ATen operation (or for these arguments of it)."""

    def __init__(self, op: object, reason: str, fix: str = "leave strict=False, so that ATen runs the graph"):
        self.op = op
        super().__init__(f"operation {op}: {reason}", "an operation with a lowering or a definition", fix)


class UnsupportedDtype(Unsupported):
    """A dtype no kernel can load or store."""

    def __init__(self, dtype: object, where: str):
        self.dtype = dtype
        super().__init__(
            f"dtype {dtype} in {where}",
            "float32, float64, bfloat16, float16, bool, or an integer type of 8 to 64 bits",
            "convert the tensor, or leave strict=False",
        )


class UnsupportedDevice(Unsupported):
    """A tensor that doesn't live on the CPU."""

    def __init__(self, device: object, where: str):
        self.device = device
        super().__init__(f"device {device} in {where}", "device cpu", "move the model to the CPU")


class UnknownSymbol(Unsupported):
    """A symbolic size whose value no input of the graph carries."""

    def __init__(self, symbol: object, known: object):
        super().__init__(f"size {symbol} is not carried by any input", f"one of {known}")


class InvalidProgram(BridgeError):
    """A `Program` that contradicts itself: a defect of the code generator, not of the user's model."""


class VerifyError(BridgeError):
    """Loop IR that contradicts itself: a defect of the pass that made it, not of the user's model."""

    def __init__(self, where: object, after: str, received: str, required: str):
        super().__init__(f"after {after}: {where}: {received}", required, "please report it with the model")


class InvalidInput(BridgeError):
    """A compiled graph called with other tensors than it was compiled for (checked when PYNN_DEBUG >= 1)."""


class CompileError(BridgeError):
    """Numba or LLVM refused a generated kernel."""

    def __init__(self, kernel: str, reason: str, path: str = ""):
        self.kernel = kernel
        where = f" (in {path})" if path else ""
        super().__init__(f"kernel {kernel}{where} does not compile: {reason}")


class FallbackWarning(UserWarning):
    """A graph runs through ATen instead of generated kernels."""


class CacheWarning(UserWarning):
    """The disk cache is not usable as it is; results are correct, compiled code is not kept."""


class ThreadsWarning(UserWarning):
    """The machine's threads can't be used; kernels run on one thread."""
