"""Which query learns which of a shape's targets: the cheapest one-to-one matching, a whole batch at once.

The assignment problem (Kuhn 1955), solved by shortest augmenting paths as in Jonker and Volgenant 1987 and Crouse 2016,
which is also SciPy's method.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@torch.library.custom_op("recon::match", mutates_args=())  # one node of a compiled step, on any device
def match(predicted: Tensor, target: Tensor, present: Tensor) -> Tensor:
    """Match queries to the targets that are there, each at most once, as many as can be, at the largest sum of cosines.

    predicted `[B, Q, D]` and target `[B, T, D]` of unit length, of which only those of `present [B, T]` (bool) count.
    Returns each target's query, `[B, T]` int64, -1 where it is absent or, of more targets than queries, left over. A
    cosine that is no finite number counts as 0, so that it shows in the loss and not here.

    The sum is that of `scipy.optimize.linear_sum_assignment`. Where several matchings are the best, a CPU takes
    SciPy's; another device takes, target by target in their order, the first query that a shortest path ends at. Both
    give the same matching for the same cosines every time. No device waits for the host.
    """
    if predicted.device.type != "cpu":
        return match_batched(_cost(predicted @ target.transpose(1, 2)), present)
    # NumPy multiplies matrices this small in a quarter of the time that torch takes.
    with np.errstate(invalid="ignore", over="ignore"):
        cosines = np.matmul(predicted.detach().numpy(), target.detach().numpy().swapaxes(1, 2))
    return match_on_host(_cost(torch.from_numpy(cosines)), present)


@match.register_fake
def _(predicted: Tensor, target: Tensor, present: Tensor) -> Tensor:
    return torch.empty_like(present, dtype=torch.int64)


def _cost(cosines: Tensor) -> Tensor:
    return -cosines.double().nan_to_num(0.0, 0.0, 0.0)


def match_on_host(cost: Tensor, present: Tensor) -> Tensor:
    """`match` of finite `cost [B, Q, T]` at the least total, by SciPy, cloud by cloud."""
    # On a CPU an operation of torch takes longer to start than SciPy takes for a whole cloud.
    from scipy.optimize import linear_sum_assignment

    matched = torch.full(present.shape, -1)
    query_of, there = matched.numpy(), present.numpy()
    whole: list[bool] = present.all(dim=1).tolist()
    for cloud, table in enumerate(cost.numpy()):
        if whole[cloud]:
            queries, targets = linear_sum_assignment(table)
        else:
            kept = there[cloud].nonzero()[0]
            queries, places = linear_sum_assignment(table[:, kept])
            targets = kept[places]
        query_of[cloud, targets] = queries
    return matched


def match_batched(cost: Tensor, present: Tensor) -> Tensor:
    """The same in operations over the batch; T (T + 1) / 2 steps whatever the costs are.

    A row a target, a column a query, and as many columns for nobody as a cloud has targets too many. Target by target,
    Dijkstra's shortest path by reduced costs leads from it to a column that is free, and is turned around. Of the dual
    variables only the columns' `price` is kept; a matched target's is its cost less its column's price.
    """
    batch, num_query, num_target = cost.shape
    num_column = max(num_query, num_target)
    table, inf = _table(cost, present, num_column), float("inf")
    # One row and one column more, of nobody: what has nowhere to go ends there, and stays.
    row_of = table.new_full((batch, num_column + 1), num_target, dtype=torch.int64)
    column_of = table.new_full((batch, num_target + 1), num_column, dtype=torch.int64)
    price = table.new_zeros(batch, num_column)
    first = torch.arange(0, batch * (num_target + 1), num_target + 1, device=cost.device)[:, None]
    for target in range(num_target):
        reduced = table - price[:, None, :]
        tight = reduced.gather(2, column_of.clamp(max=num_column - 1)[:, :, None])
        reduced = (reduced - tight.where((column_of < num_column)[:, :, None], 0.0)).flatten(0, 1)
        row = torch.where(present[:, target, None], target, num_target)
        length = table.new_zeros(batch, 1)
        closed, reached = torch.zeros_like(price), torch.full_like(price, inf)
        open_, way = reached.clone(), torch.full_like(row_of[:, :-1], num_target)
        for _ in range(target + 1):
            through = reduced.index_select(0, (first + row).flatten()).add_(closed).add_(length)
            way = torch.where(through < open_, row, way)
            open_ = torch.minimum(open_, through)
            length, column = open_.min(dim=1, keepdim=True)
            row = row_of.gather(1, column)
            # A free column ends the path: it stays the nearest, and the row of nobody adds nothing.
            shut = torch.where(row < num_target, inf, 0.0).to(table.dtype)
            reached.scatter_(1, column, length)
            closed.scatter_(1, column, shut)
            open_.scatter_(1, column, shut + length)
        price = price + torch.where(reached < length, reached - length, 0.0)
        way = torch.cat([way, torch.full_like(column, num_target)], dim=1)
        column = torch.where(length < inf, column, num_column)
        for _ in range(target + 1):
            row = way.gather(1, column)
            row_of.scatter_(1, column, row)
            following = column_of.gather(1, row)
            column_of.scatter_(1, row, column)
            column = following
    query = column_of[:, :num_target]
    return query.where(query < num_query, -1)


def _table(cost: Tensor, present: Tensor, num_column: int) -> Tensor:
    """Costs `[B, T + 1, max(Q, T)]` by target: infinite where no target is, and in columns not needed."""
    batch, num_query, num_target = cost.shape
    table = cost.new_full((batch, num_target + 1, num_column), float("inf"))
    table[:, :num_target, :num_query] = cost.transpose(1, 2)
    spare = torch.arange(num_column - num_query, device=cost.device)
    needed = spare < (present.sum(dim=1, keepdim=True) - num_query)
    table[:, :num_target, num_query:] = torch.where(needed[:, None, :], 0.0, float("inf")).to(table.dtype)
    return table.masked_fill(~F.pad(present, (0, 1))[:, :, None], float("inf"))
