"""CPU kernels compiled by Numba as they are first called: float32 and float64, the bits of plain torch's."""
