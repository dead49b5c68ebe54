"""The passes Numba takes kernels and their helpers through: those of its nopython pipeline that do anything here.

The kernel language has no closures made inside a function, no `with`, no `literal_unroll`, no array expressions and
no inlining before LLVM's. Numba's default pipeline looks for each of them, and several times over the whole function
for what other passes may have left.
"""

from __future__ import annotations

from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import PassManager
from numba.core.typed_passes import (
    IRLegalization,
    NativeLowering,
    NoPythonBackend,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.untyped_passes import (
    DeadBranchPrune,
    FixupArgs,
    GenericRewrites,
    IRProcessing,
    ReconstructSSA,
    RewriteSemanticConstants,
    TranslateByteCode,
)


class KernelCompiler(CompilerBase):
    def define_pipelines(self) -> list[PassManager]:
        passes = PassManager("kernel")
        passes.add_pass(TranslateByteCode, "analyzing bytecode")
        passes.add_pass(FixupArgs, "fix up args")
        passes.add_pass(IRProcessing, "processing IR")
        passes.add_pass(RewriteSemanticConstants, "rewrite semantic constants")
        passes.add_pass(DeadBranchPrune, "branches on what a closure holds")
        passes.add_pass(GenericRewrites, "constant indices of tuples")
        passes.add_pass(ReconstructSSA, "ssa")
        passes.add_pass(NopythonTypeInference, "types")
        passes.add_pass(PreLowerStripPhis, "remove phi nodes")
        passes.add_pass(IRLegalization, "ensure IR is legal prior to lowering")
        passes.add_pass(NativeLowering, "native lowering")
        passes.add_pass(NoPythonBackend, "code")
        passes.finalize()
        return [passes]
