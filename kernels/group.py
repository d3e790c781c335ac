"""Cut a cloud into local groups, p_j - c_g for the K points p_j nearest to each sampled center c_g: the patches of
Point-BERT (Yu et al. 2022) and Point-MAE (Pang et al. 2022), which ReCon embeds.
"""

from torch import Tensor

from recon.kernels import transforms
from recon.kernels.backends import choose
from recon.kernels.checks import check_count, check_points, working_dtype


def group_points(points: Tensor, num_group: int, group_size: int, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Groups of neighbours around farthest-point-sampled centers, each relative to its center.

    points [B, N, 3] -> groups [B, G, S, 3] (nearest first, so the center itself leads), centers [B, G, 3], in
    the dtype of points and differentiable in them. Sampling starts at index 0; ties go to the lowest index.
    `backend` as in kernels.backends.choose. ValueError unless 1 <= num_group <= N and 1 <= group_size <= N.
    """
    check_points("points", points)
    num_group, group_size = check_count("num_group", num_group), check_count("group_size", group_size)
    for name, count in (("num_group", num_group), ("group_size", group_size)):
        if count > points.shape[1]:
            raise ValueError(f"{name} {count} must not exceed the points of a cloud, got points {list(points.shape)}")
    backend = choose(backend, points, "group_points", cluster=True, K=group_size)
    groups, centers, _, _ = transforms.groups(points.to(working_dtype(points)), num_group, group_size, backend)
    return groups.to(points.dtype), centers.to(points.dtype)
