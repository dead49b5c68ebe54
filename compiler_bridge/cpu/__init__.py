"""CPU kernels in Python: the SIMD vocabulary, the mathematics library and what is written in them."""
