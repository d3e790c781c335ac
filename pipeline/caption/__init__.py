"""Words for shapes: class prompts from templates; captions from facts, files, CLIP features and captioning models."""

from pipeline.caption.templates import CLASS_PROMPTS, class_prompts
from pipeline.caption.words import article, describe

__all__ = ["CLASS_PROMPTS", "article", "class_prompts", "describe"]
