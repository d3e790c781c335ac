"""The release's frozen teachers at their size, with random weights: a ViT-B/16 of timm, CLIP's text tower."""

import torch
from torch import Tensor, nn

CONTEXT, VOCABULARY = 77, 49408  # of CLIP


class Teachers:
    """What a step with online teachers runs beside the student: forward passes over pictures and words.

    Pictures and tokens are given as they enter the towers: reading and augmenting pictures is counted nowhere.
    """

    def __init__(self, image: nn.Module, text: nn.Module | None, batch: int, pixels: int, device: torch.device) -> None:
        self.image = image.to(device).eval().requires_grad_(False)
        self.text = None if text is None else text.to(device).eval().requires_grad_(False)
        source = torch.Generator().manual_seed(0)
        self.pictures = torch.randn(batch, 3, pixels, pixels, generator=source).to(device)
        self.tokens = torch.randint(VOCABULARY, (batch, CONTEXT), generator=source).to(device)

    @torch.no_grad()
    def features(self, image: Tensor, text: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Image and text features `[B, D]` in place of the stored ones; of a tower that is not there, those."""
        with torch.autocast(self.pictures.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            image = self.image(self.pictures)
            if self.text is not None:
                text = self.text.encode_text(self.tokens)
        return image.float(), text.float()


def load_teachers(
    batch: int, image_dim: int, text_dim: int, device: torch.device, tiny: bool
) -> tuple[Teachers | None, str]:
    """The teachers that the installed packages have, and one line on them; None without timm."""
    try:
        import timm
    except ModuleNotFoundError:
        return None, "no online teachers: timm is not installed"
    name, pixels = ("vit_tiny_patch16_224", 32) if tiny else ("vit_base_patch16_224", 224)
    image = timm.create_model(name, pretrained=False, num_classes=0, img_size=pixels)
    assert image.num_features == image_dim
    told = f"{name} of timm at {pixels} px"
    try:
        import open_clip
    except ModuleNotFoundError:
        return Teachers(image, None, batch, pixels, device), f"{told}; no text teacher: open_clip is not installed"
    config = open_clip.get_model_config("ViT-B-32")
    words = config["text_cfg"] | ({"width": text_dim, "heads": 2, "layers": 1} if tiny else {})
    # CLIP's image tower does not run: as small as it can be.
    unused = {"image_size": 32, "patch_size": 32, "layers": 1, "width": 64}
    # The release's CLIP is OpenAI's, with its own GELU.
    text = open_clip.CLIP(embed_dim=text_dim, vision_cfg=unused, text_cfg=words, quick_gelu=True)
    return Teachers(image, text, batch, pixels, device), f"{told} and the text tower of open_clip's ViT-B-32"
