"""What benchmarks/pretrain.py is made of: the release's way, the frozen teachers, clocks and the floor."""
