"""What benchmarks/scale.py is made of beside the engine: OpenShape's ensemble at its size."""
