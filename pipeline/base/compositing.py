"""From pictures on white and their alpha to straight colours and masks.

`alpha` is the share of a pixel's samples that show the shape, times 255. A picture on white is
`a * colour + (1 - a) * 255` with a = alpha / 255, all in sRGB as it is stored: what an image program's "over" does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_VIEWS, MAX_RESOLUTION = 72, 4096  # of a shape; pixels a side


def straight_rgba(rgb: NDArray[Any], alpha: NDArray[Any]) -> NDArray[np.uint8]:
    """[..., 4] uint8 with the shape's own colour at its edges too, from [..., 3] uint8 on white and [...] uint8.

    Laid over white it gives rgb back to within 1; a rounding of rgb grows with what alpha leaves of the colour, to 3
    at a quarter. Without coverage it is white.
    """
    covered = np.maximum(alpha, 1).astype(np.float32)[..., None]
    straight = 255 - (255 - rgb.astype(np.float32)) * (255 / covered)
    return np.concatenate([np.rint(np.clip(straight, 0, 255)).astype(np.uint8), alpha[..., None]], axis=-1)


def mask(alpha: NDArray[Any]) -> NDArray[np.bool_]:
    """[...] whether the shape covers half of the pixel or more, from [...] uint8."""
    return np.asarray(alpha >= 127)  # drivers round a half to 127 or to 128
