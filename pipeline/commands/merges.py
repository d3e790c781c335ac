"""A byte-pair vocabulary for `open_clip`'s tokenizer, learnt from texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise


def learn_merges(texts: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Byte-pair merges for the words of `texts`, the most frequent pair first, ties by spelling; at most `count`.

    Symbols are written as open_clip's tokenizer writes them: a word's last one ends in "</w>".
    """
    # Letters, digits and punctuation are words apart to that tokenizer, "armrests," two of them.
    frequency = Counter(word for text in texts for word in re.findall(r"[^\W\d_]+|\d|[^\w\s]+", text.lower()))
    words = {word: [*word[:-1], word[-1] + "</w>"] for word in sorted(frequency)}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in words.items():
            for pair in pairwise(symbols):
                pairs[pair] += frequency[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for symbols in words.values():
            position = 0
            while position < len(symbols) - 1:
                if (symbols[position], symbols[position + 1]) == best:
                    symbols[position : position + 2] = ["".join(best)]
                position += 1
    return merges
