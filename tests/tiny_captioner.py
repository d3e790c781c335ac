"""A random BLIP as the transformers library saves one, small enough to build in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] [DEC] a red blue chair table mug with of picture the wooden and on four legs"


def save_captioner(folder: Path, seed: int = 0) -> Path:
    """The folder, with a model whose weights are spread wide enough for pictures to differ in their captions."""
    import torch
    from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor
    from transformers import BlipProcessor as Processor
    from transformers.utils import logging

    words = WORDS.split()
    tower: dict[str, Any] = {
        "hidden_size": 16, "intermediate_size": 16, "projection_dim": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }  # fmt: skip
    text = {"vocab_size": len(words), "encoder_hidden_size": 16, "max_position_embeddings": 32}
    text |= {"bos_token_id": 5, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3}
    config = BlipConfig(
        text_config={**text, **tower},
        vision_config={"image_size": 32, "patch_size": 16, **tower},
        projection_dim=8,
        image_text_hidden_size=8,
    )
    model = BlipForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            scale = bool("norm" in name.lower() and name.endswith("weight"))
            weight.copy_(torch.randn(weight.shape, generator=generator) * (1.0 if weight.ndim > 1 else 0.3) + scale)
        model.text_decoder.cls.predictions.bias[:6] = -20  # words alone, up to the last token that is allowed
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}, bos_token="[DEC]")
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
        Processor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    finally:
        logging.enable_progress_bar()
    return folder
