"""What benchmarks/kernels.py is made of: the contestants, the clocks, the page."""
