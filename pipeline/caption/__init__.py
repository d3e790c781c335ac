"""Words for shapes: class prompts from templates; captions from facts, files, CLIP features and captioning models."""

from recon.pipeline.base.words import article
from recon.pipeline.caption.facts import describe
from recon.pipeline.store.prompts import CLASS_PROMPTS, class_prompts

__all__ = ["CLASS_PROMPTS", "article", "class_prompts", "describe"]
