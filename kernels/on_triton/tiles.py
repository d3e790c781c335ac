"""What the Chamfer kernels share: a warp's tile of queries, and the distances from it.

A program is one warp. It holds queries of one or more clouds as a tile [R, C, L]: L lanes a cloud, R queries a lane.
Its lanes walk the other cloud together, so that one load of a point serves R pairs and no result crosses lanes.
"""

from typing import NamedTuple

import triton
import triton.language as tl

# Queries a lane at most. Compiled for sm_90 at [128, 1024], 4 and 8 take 64 and 95 registers, and 966 and 802
# instructions a query; 16 of three coordinates are more than `tile` lets a lane hold.
ROWS = 8
# Warps that a launch should have, by reckoning: two for each of the four schedulers of about 130 multiprocessors. Small
# clouds finish early and need more to hide latency.
WARPS, TINY_WARPS = 1000, 2000
# Clouds up to this size are tiny.
TINY = 64
# Taken as a constant, which Triton does with a 1, a size empties a loop before another, and the compiler of 3.6 fails.
SIZES = ("num_clouds", "num_x", "num_y")


class Tile(NamedTuple):
    """Queries of one program: rows x lanes of each of `clouds` clouds; powers of two."""

    rows: int
    clouds: int
    lanes: int

    def programs(self, num_clouds: int, size: int) -> int:
        """Programs that cover `size` queries of each cloud."""
        return -(-num_clouds // self.clouds) * -(-size // (self.rows * self.lanes))


def tile(num_clouds: int, size: int, width: int, directions: int) -> Tile:
    """The largest tile that leaves enough warps and registers, for `size` queries a cloud, or fewer."""
    queries = triton.next_power_of_2(size)
    enough = num_clouds * queries * directions // (32 * (TINY_WARPS if size <= TINY else WARPS))
    rows = 1
    while 2 * rows <= min(ROWS, queries, enough) and 2 * rows * width <= 32:
        rows *= 2
    lanes = min(32, queries // rows)
    return Tile(rows, 32 // lanes, lanes)


@triton.jit
def coordinates(points: tl.tensor, rows: tl.tensor, mask: tl.tensor, D: tl.constexpr) -> tl.tuple:
    """The D coordinates of rows of points."""
    values: tl.tuple = ()
    for d in tl.static_range(D):
        values += (tl.load(points + rows * D + d, mask=mask),)
    return values


@triton.jit
def distance(one: tl.tuple, other: tl.tuple, D: tl.constexpr, NORM: tl.constexpr) -> tl.tensor:
    """Added up in the order of the coordinates."""
    apart = one[0] - other[0]
    total = tl.abs(apart) if NORM == 1 else apart * apart
    for d in tl.static_range(1, D):
        apart = one[d] - other[d]
        total += tl.abs(apart) if NORM == 1 else apart * apart
    return total


@triton.jit
def queries_of(
    cloud: tl.tensor, num_tiles: tl.tensor, size: tl.tensor, R: tl.constexpr, L: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Numbers in the cloud [R, 1, L] of this program's queries, and which of them there are."""
    first = tl.program_id(0) % num_tiles * (R * L)
    query = first + tl.arange(0, R)[:, None, None] * L + tl.arange(0, L)[None, None, :]
    return query, query < size
