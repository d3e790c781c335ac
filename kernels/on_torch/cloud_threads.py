"""Work on clouds in as many threads as torch would use, for libraries that know none of their own."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch


def each(run: Callable[[int], None], items: Sequence[int]) -> None:
    """`run` for every item, in threads where torch has more than one."""
    workers = min(len(items), torch.get_num_threads())
    if workers > 1:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(run, items))
    else:
        for item in items:
            run(item)
