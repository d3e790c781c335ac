"""Downstream models: the pretraining encoder under a classification or a part segmentation head.

Both hold `encoder`, an `Encoder` like the pretrained one, whose weights load into it as they are:
`classifier.encoder.load_state_dict(recon.encoder.state_dict())`. The queries read the local tokens without
stop-gradient here.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recon.kernels import interpolate_three
from recon.trainer.model.encoder import TwoTowers
from recon.trainer.model.losses import reconstruction_loss
from recon.trainer.model.recon import Decoder, ModelConfig, ReCon, Student
from recon.trainer.training.distributed import of_batch

CLASSIFY_WIDTH = 256
PROPAGATE_WIDTH = 1024
LABEL_WIDTH = 64
SEGMENT_WIDTHS = (512, 256)
NUM_TAPS = 3


def global_feature(queries: Tensor, tokens: Tensor, config: ModelConfig) -> Tensor:
    """Input of the classification heads, `[B, feature_width]`: cls, the max of each teacher's queries, and the max of
    the local tokens, of queries `[B, Q, C]` and tokens `[B, L, C]`.
    """
    parts = [queries[:, :1]] * config.has_cls + [queries[:, span] for span in config.teacher_queries]
    return torch.cat([part.amax(dim=1) for part in (*parts, tokens)], dim=1)


def dropped(x: Tensor, layer: nn.Dropout, generator: torch.Generator | None) -> Tensor:
    """What a dropout layer makes of `x [B, ...]`, drawn from `generator`; from torch's global one without."""
    if not layer.training:
        return x

    def draw(count: int) -> Tensor:
        return x.new_empty(count, *x.shape[1:]).bernoulli_(1 - layer.p, generator=generator)

    return x * of_batch(draw, len(x)) / (1 - layer.p)


class ClassificationHead(nn.Module):
    """Logits from `global_feature`: one linear layer ("linear") or three ("full" and "mlp3").

    "full" and "mlp3" are one head: they name whether the encoder trains along, which the trainer decides.
    """

    def __init__(self, feature_width: int, num_classes: int, kind: str = "full") -> None:
        super().__init__()
        if kind == "linear":
            self.layers = nn.Sequential(nn.Linear(feature_width, num_classes))
        elif kind in ("full", "mlp3"):
            self.layers = nn.Sequential(
                nn.Linear(feature_width, CLASSIFY_WIDTH),
                nn.BatchNorm1d(CLASSIFY_WIDTH),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(CLASSIFY_WIDTH, CLASSIFY_WIDTH),
                nn.BatchNorm1d(CLASSIFY_WIDTH),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(CLASSIFY_WIDTH, num_classes),
            )
        else:
            raise ValueError(f"head: must be one of full, linear, mlp3, got {kind!r}")

    def forward(self, feature: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Map `feature [B, feature_width]` to logits `[B, num_classes]`; `generator` draws the dropout."""
        for layer in self.layers:
            feature = dropped(feature, layer, generator) if isinstance(layer, nn.Dropout) else layer(feature)
        return feature


class Classifier(Student):
    """Encoder and classification head; `config` gives the groups and the drop path of the downstream task.

    It has the cls query, whether the pretrained model had it or not. With `rebuilds` it keeps the pretrained decoder,
    as ReCon++ does for a causal model: every group is rebuilt along.
    """

    def __init__(self, config: ModelConfig, num_classes: int, head: str = "full", rebuilds: bool = False) -> None:
        super().__init__(config if config.streams == "two_tower" else replace(config, cls_query=True))
        self.head = ClassificationHead(self.encoder.feature_width, num_classes, head)
        if rebuilds and config.mask_type != "causal":
            raise ValueError("model.mask_type: only a causal model rebuilds what it classifies; set task.rebuild=0")
        if rebuilds and config.reconstruction == "none":
            raise ValueError('model.reconstruction: "none" rebuilds nothing; set task.rebuild=0')
        self.decoder = Decoder(config) if rebuilds else None

    def forward(
        self, points: Tensor, generator: torch.Generator | None = None, rebuild: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Map clouds `points [B, N, 3]` to logits `[B, num_classes]`; `generator` draws the drop path.

        With `rebuild` as `forward_rebuilt`, for what wraps a model and calls nothing else.
        """
        if rebuild:
            return self.forward_rebuilt(points, generator)
        groups, centers = self.group(points)
        queries, tokens = self._encoded(groups, centers, generator)
        logits: Tensor = self.head(global_feature(queries, tokens, self.config), generator)
        return logits

    def forward_rebuilt(self, points: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """As `forward`, and the reconstruction loss of all groups; of a model that `rebuilds`."""
        assert self.decoder is not None
        groups, centers = self.group(points)
        queries, tokens = self._encoded(groups, centers, generator)
        logits: Tensor = self.head(global_feature(queries, tokens, self.config), generator)
        predicted = self.decoder.causal(tokens, centers, None, self.decoder.drop_path(points.shape[0], generator))
        truth = groups[..., : predicted.shape[-1]]
        return logits, reconstruction_loss(predicted, truth, self.config.reconstruction)

    def _encoded(self, groups: Tensor, centers: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        scales = self.encoder.drop_path(groups.shape[0], generator)
        queries, tokens = self.encoder(self.encoder.patch_embed(groups), centers, scales=scales)
        return queries, tokens


class SegmentationHead(nn.Module):
    """Part logits of every point, from three depths of the encoder, the cloud's global features and its category."""

    def __init__(self, width: int, num_parts: int, num_categories: int) -> None:
        super().__init__()
        tapped = NUM_TAPS * width
        self.num_categories = num_categories
        self.label_conv = nn.Linear(num_categories, LABEL_WIDTH, bias=False)
        self.label_norm = nn.BatchNorm1d(LABEL_WIDTH)
        self.propagate_conv1 = nn.Linear(3 + tapped, 4 * width)
        self.propagate_norm1 = nn.BatchNorm1d(4 * width)
        self.propagate_conv2 = nn.Linear(4 * width, PROPAGATE_WIDTH)
        self.propagate_norm2 = nn.BatchNorm1d(PROPAGATE_WIDTH)
        # Columns: the point's own feature, then max and mean of the tokens, max of the queries, category.
        self.conv1 = nn.Linear(PROPAGATE_WIDTH + 2 * tapped + width + LABEL_WIDTH, SEGMENT_WIDTHS[0])
        self.norm1 = nn.BatchNorm1d(SEGMENT_WIDTHS[0])
        self.dropout = nn.Dropout(0.5)
        self.conv2 = nn.Linear(SEGMENT_WIDTHS[0], SEGMENT_WIDTHS[1])
        self.norm2 = nn.BatchNorm1d(SEGMENT_WIDTHS[1])
        self.conv3 = nn.Linear(SEGMENT_WIDTHS[1], num_parts)

    def forward(
        self,
        points: Tensor,
        centers: Tensor,
        tokens: Tensor,
        queries: Tensor,
        category: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return logits `[B, N, num_parts]`.

        points `[B, N, 3]`, centers `[B, G, 3]`, tokens `[B, G, 3C]` (the tapped blocks' side by side), queries
        `[B, 3, C]` of the last block before its norm, category `[B]` int; `generator` draws the dropout.
        """
        batch, num_points, _ = points.shape
        one_hot = F.one_hot(category, self.num_categories).to(tokens.dtype)
        label = F.leaky_relu(self.label_norm(self.label_conv(one_hot)), 0.2)

        local = torch.cat([points, interpolate_three(centers, tokens, points)], dim=-1).flatten(0, 1)
        local = F.relu(self.propagate_norm1(self.propagate_conv1(local)))
        local = F.relu(self.propagate_norm2(self.propagate_conv2(local)))

        # As in the patch embedding: the columns that see a whole cloud are multiplied once a cloud.
        whole = torch.cat([tokens.amax(dim=1), tokens.mean(dim=1), queries.amax(dim=1), label], dim=-1)
        weight = self.conv1.weight
        x = F.linear(local, weight[:, :PROPAGATE_WIDTH]).view(batch, num_points, -1)
        x = x + F.linear(whole, weight[:, PROPAGATE_WIDTH:], self.conv1.bias).unsqueeze(1)
        x = F.relu(self.norm1(x.flatten(0, 1))).view(batch, num_points, -1)
        x = dropped(x, self.dropout, generator).flatten(0, 1)
        x = F.relu(self.norm2(self.conv2(x)))
        logits: Tensor = self.conv3(x)
        return logits.view(batch, num_points, -1)


class Segmenter(Student):
    """Encoder and part segmentation head."""

    def __init__(self, config: ModelConfig, num_parts: int, num_categories: int) -> None:
        super().__init__(config)
        if isinstance(self.encoder, TwoTowers):
            raise ValueError("model.streams: segmentation takes one encoder, no 'two_tower'")
        if config.mask_type == "causal":
            raise ValueError('model.mask_type: segmentation needs each group\'s own token, which "causal" has not')
        # Blocks 4, 8 and 12 of the released depth, and the same shares of any other; of fewer than three some twice.
        self.taps = [max(1, config.depth * tap // NUM_TAPS) for tap in range(1, NUM_TAPS + 1)]
        self.head = SegmentationHead(config.width, num_parts, num_categories)

    def forward(self, points: Tensor, category: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Map clouds `points [B, N, 3]` of `category [B]` (int) to log-probabilities `[B, N, num_parts]`."""
        groups, centers = self.group(points)
        scales = self.encoder.drop_path(points.shape[0], generator)
        assert not isinstance(self.encoder, TwoTowers)
        tapped = self.encoder.features(self.encoder.patch_embed(groups), centers, self.taps, scales=scales)
        tokens = torch.cat([self.encoder.norm(tokens) for _, tokens in tapped], dim=-1)
        logits: Tensor = self.head(points[..., :3], centers, tokens, tapped[-1][0], category, generator)
        return logits.log_softmax(dim=-1)


Model = ReCon | Classifier | Segmenter
"""What a checkpoint may hold."""
