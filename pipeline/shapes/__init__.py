"""One shape: meshes and clouds, read and sampled; pure functions of their inputs and a seed."""
