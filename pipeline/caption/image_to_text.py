"""Captioners from the transformers library: pictures in, one line of text a picture out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recon.pipeline.base.digests import canonical_json
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.hub import hub_answers
from recon.pipeline.base.words import single_spaced
from recon.pipeline.caption.captioner import CaptionerTable
from recon.pipeline.teachers import probe
from recon.pipeline.teachers.batches import BatchSize, in_batches
from recon.pipeline.teachers.known import KnownWeights

CPU_BATCH = 8
GPU_BATCH = 64  # to begin with
NUM_BEAMS = 3
TOP_P = 0.9
VERSION = 1  # of how captions are searched and drawn; raise it when that changes

# What says where a model came from and who saved it, not what it does.
_ORIGIN = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


class Captioner:
    """A frozen image-to-text model. The same picture, seed and recipe give one caption; of GPUs see `BatchSize`."""

    def __init__(self, table: CaptionerTable, device: str = "cpu") -> None:
        self._table = table
        self._device = torch.device(device)
        folder = Path(table.model)
        files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
        known = KnownWeights(files, table.model)
        self._processor, self._model = _load(table)
        self._model.eval().requires_grad_(False)
        self._digest = known.digest("captioner", self._model.state_dict())
        self._model.to(self._device)
        self._batch = BatchSize(self._device, CPU_BATCH, GPU_BATCH)

    @property
    def digest(self) -> str:
        """Of the weights."""
        return self._digest

    def recipe(self) -> dict[str, Any]:
        """Everything about the model that decides the captions, as JSON values."""
        search = {"num_beams": NUM_BEAMS, "top_p": TOP_P, "version": VERSION}
        return {
            "architecture": _plain(self._model.config.to_diff_dict()),
            "generation": _plain(self._model.generation_config.to_diff_dict()),
            "weights": self._digest,
            "pictures": _plain(self._processor.image_processor.to_dict()),
            "tokenizer": _tokenizer_digest(self._processor.tokenizer),
            "search": search,
            "prompt": self._table.prompt,
            "max_new_tokens": self._table.max_new_tokens,
        }

    @cached_property
    def probe(self) -> dict[str, Any]:
        """What it makes of fixed inputs, see `teachers.probe`: scores of the first word, and tokens of sentences."""
        with torch.inference_mode(), _quiet():
            found = self._model.generate(
                **self._inputs(list(probe.pictures(224, 224))),
                do_sample=False,
                num_beams=1,
                max_new_tokens=1,
                output_logits=True,
                return_dict_in_generate=True,
            )
            tokens = self._processor.tokenizer(list(probe.SENTENCES)).input_ids
        scores = probe.of_features(f"captions {self._table.name!r}", found.logits[0].float().cpu().numpy())
        return {**scores, "tokens": probe.of_tokens(tokens)}

    def write(self, pictures: NDArray[np.uint8], seeds: Sequence[int] | None) -> list[str]:
        """[B, H, W, 3] sRGB -> B captions: by beam search, or with a seed a picture drawn from the likeliest words."""

        def run(rows: range) -> list[str]:
            part = pictures[rows.start : rows.stop]
            blank = np.full((len(rows) - len(part), *part.shape[1:]), 255, np.uint8)
            numbers = None if seeds is None else [*seeds[rows.start : rows.stop], *[0] * len(blank)]
            return self._pass([*part, *blank], numbers)

        whose = f"captions {self._table.name!r}"
        return in_batches(whose, len(pictures), self._batch, lambda start, rows: range(start, start + rows), run)

    def _pass(self, pictures: list[NDArray[np.uint8]], seeds: Sequence[int] | None) -> list[str]:
        inputs = self._inputs(pictures)
        options: dict[str, Any] = {"do_sample": False, "max_new_tokens": self._table.max_new_tokens}
        if seeds is None:
            options["num_beams"] = NUM_BEAMS
        else:
            options |= {"num_beams": 1, "logits_processor": [_Draw(seeds)]}
        with _quiet():
            tokens = self._model.generate(**inputs, **options)
        lines: list[str] = self._processor.batch_decode(tokens, skip_special_tokens=True)
        return [single_spaced(line) for line in lines]

    def _inputs(self, pictures: list[NDArray[np.uint8]]) -> Any:
        words = {"text": [self._table.prompt] * len(pictures)} if self._table.prompt else {}
        return self._processor(images=pictures, **words, return_tensors="pt").to(self._device)


class _Draw:
    """Makes a greedy search draw each next token from the likeliest ones, a row by its own seed.

    The largest of log-probabilities with Gumbel noise is a draw from the distribution. Torch's own sampling takes one
    generator for the batch, so a row's draw would hang on where in the batch it stands.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = seeds

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """[B, L] tokens so far, [B, V] logits -> [B, V]; the likeliest tokens that make up TOP_P keep a chance."""
        likely, order = scores.float().log_softmax(-1).sort(dim=-1, descending=True, stable=True)
        before = likely.exp().cumsum(-1) - likely.exp()
        likely = likely.masked_fill(before >= TOP_P, -torch.inf)
        noise = np.stack(
            [np.random.default_rng((seed, input_ids.shape[1])).gumbel(size=scores.shape[1]) for seed in self._seeds]
        )
        drawn = likely + torch.from_numpy(noise).to(likely)
        return torch.full_like(drawn, -torch.inf).scatter(1, order, drawn)


def _load(table: CaptionerTable) -> tuple[Any, Any]:
    """The processor and the model in float32. Only safetensors are read: other weights are pickles."""
    try:
        from transformers import AutoModelForImageTextToText, AutoProcessor
    except ImportError as error:
        raise UserError(
            f"captions {table.name!r}: a captioner needs the transformers library: pip install recon[captioner]"
        ) from error
    local = Path(table.model).is_dir()
    if local and not any(Path(table.model).glob("*.safetensors")):
        raise UserError(f"captions {table.name!r}: {table.model} holds no .safetensors weights; save them as such")
    options: dict[str, Any] = {"local_files_only": local or not hub_answers(), "trust_remote_code": False}
    find_processor: Any = AutoProcessor.from_pretrained
    try:
        with _quiet():
            processor = find_processor(table.model, **options)
            model = AutoModelForImageTextToText.from_pretrained(
                table.model, **options, use_safetensors=True, dtype=torch.float32
            )
    except Exception as error:  # transports, formats and architectures raise what they like
        what = "cannot load the captioner saved in" if local else "cannot fetch the captioner"
        mend = "" if local else "; offline, name the folder of a saved one as `model`"
        reason = single_spaced(str(error).splitlines()[0] if str(error).strip() else type(error).__name__)
        raise UserError(f"captions {table.name!r}: {what} {table.model}: {reason}{mend}") from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise UserError(f"captions {table.name!r}: {table.model} does not turn pictures into text; name a captioner")
    return processor, model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's progress bars and advice, which would mix with this program's own."""
    from transformers.utils import logging as logs

    library: Any = logs
    level, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity(logging.ERROR)
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(level)
        if bars:
            library.enable_progress_bar()


def _plain(value: Any) -> Any:
    """A configuration as JSON values, without where it came from."""
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items() if name not in _ORIGIN}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    plain = value is None or isinstance(value, str | int | bool) or (isinstance(value, float) and np.isfinite(value))
    return value if plain else str(value)


def _tokenizer_digest(tokenizer: Any) -> str:
    content = [sorted(tokenizer.get_vocab().items()), _plain(tokenizer.special_tokens_map)]
    if getattr(tokenizer, "is_fast", False):  # the whole of it: how text is cut up too
        content.append(tokenizer.backend_tokenizer.to_str())
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()
