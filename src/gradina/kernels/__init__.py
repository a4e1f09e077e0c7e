"""CPU kernels in C for AVX-512 and AMX, compiled on first use; optional."""
