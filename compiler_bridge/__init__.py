"""From a torch graph to Numba kernels; see ARCHITECTURE.md."""
