"""What a distance is: norm 1 is Manhattan's, norm 2 the squared Euclidean one."""

ROOT = 0
"""In place of a norm, in gradients alone: the root of norm 2's distances, with a gradient of 0 where it is 0."""
