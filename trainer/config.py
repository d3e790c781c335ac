"""Settings of a training run, typed and strict; `recon.trainer.recipe` reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from recon.trainer.model.recon import ModelConfig
from recon.trainer.model.teaching import SEVERAL, Kind, Loss

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class TeacherConfig:
    """A frozen teacher, stored in the feature store, that a global query, or several, learn from."""

    teacher: Annotated[str, Field(pattern=r"^(image|text)(:.+)?$")] = "image"
    """Its kind and its name in the ref, "image:NAME" or "text:NAME"; without the name, the ref's first of that kind."""
    loss: Loss = "smooth_l1"
    """Distance to the teacher's feature: "smooth_l1" as the paper, "cosine", or "infonce" within the batch; "matched"
    and "matched_sum" are ReCon++'s, of several queries to one teacher, "multi_positive" a contrast with several
    features."""
    weight: Positive = 1.0
    """Factor of the loss in the sum."""
    queries: Annotated[int, Field(ge=1)] = 1
    """Global queries that learn from it; more than one with "matched", "matched_sum", "infonce" or "multi_positive"."""
    targets: Literal["one", "all"] = "one"
    """What it says of a sample: "one" view's feature, or one text's, drawn anew in every epoch; or "all" the views or
    the shape's own texts that there are, for a loss of several targets. Of texts `captions` "both" adds a prompt of the
    class, and "class" gives that prompt alone."""

    @property
    def kind(self) -> Kind:
        """Of pictures or of words."""
        return "image" if self.teacher.startswith("image") else "text"

    @property
    def stored_name(self) -> str:
        """Its name in the ref; empty for the first."""
        return self.teacher.partition(":")[2]


@dataclass(frozen=True)
class DenseConfig:
    """A frozen teacher whose features of points, lifted from its patches, the local tokens learn from."""

    teacher: Annotated[str, Field(min_length=1)]
    """Its name in the ref, of what `recon-pipeline lift` made."""
    weight: Positive = 1.0
    """Factor of the loss in the sum."""


@dataclass(frozen=True)
class TaskConfig:
    """What the encoder is trained for."""

    kind: Literal["pretrain", "classify", "segment"] = "pretrain"
    """"pretrain" learns from teachers and by rebuilding, "classify" the categories, "segment" the parts of shapes."""
    protocol: Literal["full", "linear", "mlp3", "peft"] = "full"
    """What is trained downstream: "full" encoder and head, "linear" and "mlp3" a head of one or three layers on the
    frozen encoder, "peft" the head and low-rank updates of the encoder (LoRA)."""
    rank: PositiveInt = 1
    """Of the low-rank updates that "peft" trains: with the head, 1 makes 0.62 M weights of the base model, 4 1.07 M."""
    pretrained: str = ""
    """A run's folder or a checkpoint that the encoder's weights come from; empty starts from scratch."""
    start: str = ""
    """Of pretraining: a vision transformer whose blocks the encoder's start from, as ReCon++'s: "timm:NAME", a folder
    that timm saved, or a .safetensors file. Empty draws them."""
    rebuild: NonNegative = 0.0
    """Of "classify" and a causal model: factor of the reconstruction that is learnt beside the categories with the
    pretrained decoder; the release of ReCon++ has 3, 0 leaves the decoder out."""
    selection: Literal["last", "validation", "test"] = "last"
    """Which epoch counts downstream: the last, or the best on the validation part that `data.hold_out` carves off the
    training rows, or, as the release's numbers, the best on the test split itself, which is optimistic."""

    def __post_init__(self) -> None:
        if self.kind == "segment" and self.protocol != "full":
            raise ValueError(f'protocol {self.protocol!r} is one of classification; segmentation trains "full"')
        if self.start and self.kind != "pretrain":
            raise ValueError('start: only kind "pretrain" starts from a vision transformer')
        if self.rebuild and (self.kind, self.protocol) != ("classify", "full"):
            raise ValueError('rebuild: goes with kind "classify" and protocol "full", which trains the encoder')


@dataclass(frozen=True)
class DataConfig:
    """Which rows of a feature store are trained on, and what is drawn of each in every epoch."""

    ref: str = ""
    """Name of the store's ref (the set of keys an experiment uses); empty takes the only one."""
    refs: tuple[str, ...] = ()
    """Of several stores (`--store` more than once), the ref of each, in their order; empty takes `ref` of all."""
    shares: tuple[PositiveInt, ...] = ()
    """Of several stores, how many samples come from each, e.g. [3, 1] three of every four from the first; empty takes
    as many as each has rows."""
    splits: Annotated[tuple[str, ...], Field(min_length=1)] = ("train",)
    """Splits whose rows are trained on."""
    teachers: tuple[TeacherConfig, ...] = (TeacherConfig("image"), TeacherConfig("text"))
    """The teachers, one global query each; none is single-modal pretraining."""
    dense: tuple[DenseConfig, ...] = ()
    """Lifted teachers that the local tokens learn from, each token the mean of what was lifted to its group's points,
    by the cosine. `pool` is then the number of points that were lifted to."""
    num_points: PositiveInt = 1024
    """Points of a training sample: a random subset, new in every epoch, of those the store holds."""
    captions: Literal["class", "shape", "both"] = "class"
    """Text target: a prompt of the row's class, a caption of the row, or either with even odds. Of texts whose features
    came with the data set's files it says nothing: those are the shapes' own."""
    pool: NonNegativeInt = 0
    """A training sample is drawn from so many farthest points of the shape; 0 draws from all the store holds."""
    normalize: Literal["sample", "cloud", "center", "none"] = "sample"
    """"sample" centres the drawn points and divides them by their largest norm; "cloud" does so by all points the store
    holds of the shape; "center" only centres the drawn ones."""
    rotate: bool = True
    """Turn every sample by a random angle about y, as the release does; false where all shapes share one front."""
    tilt: NonNegative = 0.0
    """Standard deviation in radians of three small turns, about x, y and z, cut off at three times it; ReCon++ has
    0.06."""
    scale: Annotated[tuple[Positive, Positive], Field(min_length=2)] = (1.0, 1.0)
    """Range of the random factor of a training sample, e.g. [0.667, 1.5]."""
    scale_axes: Literal["each", "together"] = "each"
    """Whether each axis has a factor of its own."""
    translate: NonNegative = 0.0
    """Largest random shift of a training sample along each axis."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of each category's rows that is trained on, one at the least; those of a smaller share are among those of
    a larger."""
    hold_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each category's rows that is left out of training, for validation."""
    way: NonNegativeInt = 0
    """Few-shot: train on so many categories, chosen at random; 0 trains on all."""
    shot: PositiveInt = 10
    """Few-shot: so many shapes of each."""
    queries: PositiveInt = 20
    """Few-shot: so many shapes of each are tested."""
    fold: NonNegativeInt = 0
    """Few-shot: number of the draw."""
    choice_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of the choice of rows for `share`, `hold_out` and few-shot folds, whatever the run's seed is."""
    draws: tuple[NonNegativeInt, ...] = ()
    """Picture draws to choose among (0 is the clean picture, 1 and up are augmented); empty takes all."""
    views: NonNegativeInt = 1
    """Views whose mean is a sample's image target: 1 draws one, n draws n different ones, 0 takes all. Of teachers
    with targets "one"."""
    drop_last: bool = True
    """Leave out an epoch's last batch where it is not full."""
    device_resident: Literal["auto", "always", "never"] = "auto"
    """Whether all data lie in device memory; "auto" does so where they fill less than half of what is free."""
    online: bool = False
    """Run the teachers themselves on every step, on the stored pictures and prompts, instead of reading their features;
    of `draws`, 0 is the clean picture then and any other a new augmentation, as is empty."""
    weights: str = "."
    """Folder of the online teachers' files, where the store's manifest named files; NAME/ in it comes first."""
    loader: Literal["map", "stream"] = "map"
    """"map" copies the rows out of the store once and maps that; "stream" reads the store's shards in every epoch."""
    buffer_gb: Positive = 2.0
    """Memory in GB (10^9 bytes) of the samples that "stream" shuffles together; it holds up to two such buffers."""

    def __post_init__(self) -> None:
        if self.loader == "stream" and self.device_resident == "always":
            raise ValueError('device_resident "always" needs loader "map": "stream" never holds all data')
        if self.online and self.device_resident == "always":
            raise ValueError('device_resident "always" needs stored targets: online ones are made on the host')
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale: {self.scale[0]} to {self.scale[1]} is no range; give the smaller first")
        if self.pool and self.pool < self.num_points:
            raise ValueError(f"pool {self.pool} is fewer than num_points {self.num_points}")
        if self.loader == "stream" and ((self.pool and not self.dense) or self.normalize == "cloud"):
            raise ValueError('loader "stream" draws from all points and knows no frame of theirs; use "map"')
        if self.way and self.hold_out:
            raise ValueError("hold_out leaves nothing of a few-shot fold; set it to 0")
        if self.way and self.share < 1:
            raise ValueError("share: a few-shot fold has `shot` shapes of each category; set it to 1")
        self._check_several()
        lifted = [each.teacher for each in self.dense]
        if len({*lifted}) < len(lifted):
            raise ValueError(f"dense: two of one name among {', '.join(lifted)}; name each teacher once")
        names = [each.teacher for each in self.teachers]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"teachers: {twice[0]!r} stands there twice; name each teacher once")

    def _check_several(self) -> None:
        several = [number for number, each in enumerate(self.teachers) if each.targets == "all"]
        for number in several:
            loss = self.teachers[number].loss
            where = f"data.teachers.{number}.targets"
            if loss not in SEVERAL:
                raise ValueError(f'{where}: "all" needs a loss of several targets ({", ".join(SEVERAL)}), not {loss!r}')
            if self.online:
                raise ValueError(f'{where}: "all" needs stored features, and data.online makes those of `views` alone')
        images = [each.targets for each in self.teachers if each.kind == "image"]
        if self.views != 1 and images and "one" not in images:
            raise ValueError('views: is of image teachers with targets "one"; those with "all" are given every view')


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule."""

    epochs: PositiveInt = 300
    """Passes over the data."""
    batch_size: PositiveInt = 128
    """Samples an update."""
    accumulate: PositiveInt = 1
    """Parts a batch is run through the model in, to save memory; divides batch_size."""
    lr: Positive = 5e-4
    """Learning rate at the end of the warm-up."""
    min_lr: NonNegative = 1e-6
    """Learning rate the cosine falls towards."""
    warmup_lr: NonNegative = 1e-6
    """Learning rate of the first epoch."""
    warmup_epochs: NonNegativeInt = 10
    """Epochs in which the learning rate rises linearly."""
    weight_decay: NonNegative = 0.05
    """Decoupled weight decay; never on biases, 1-D tensors or tokens."""
    clip_grad: NonNegative = 0.0
    """Largest norm of the whole gradient; 0 leaves it as it is."""
    head_lr: Positive = 1.0
    """Factor of the learning rate of a downstream head and of the cls query; the release's is 10 on ScanObjectNN."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of a moving average of the weights, which checkpoints keep besides, e.g. 0.999; 0 keeps none."""

    def __post_init__(self) -> None:
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate {self.accumulate} does not divide batch_size {self.batch_size}")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be fewer than epochs {self.epochs}")


@dataclass(frozen=True)
class RunConfig:
    """What is neither data, model nor optimiser."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Every random draw of the run derives from it."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forward pass; weights, gradients and the optimiser stay float32. "auto" takes bfloat16 where
    the device computes in it, float32 elsewhere."""
    compile: bool = False
    """Compile the step from grouping to loss into one graph, and replay it as CUDA graphs where `optim.accumulate` is
    1. On CUDA only: on a CPU compiling takes minutes and gains nothing."""
    sync_batchnorm: bool = True
    """Of several processes: batch statistics over all of them, as one process would have them, or each its own."""
    log_every: PositiveInt = 50
    """Steps a line of metrics averages over."""
    log_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where lines of metrics go besides metrics.jsonl."""
    probe_every: NonNegativeInt = 0
    """Steps between measurements by `probes`, at step 0 and the last one too; 0 leaves them to their commands."""
    probes: Annotated[tuple[Literal["svm", "zeroshot"], ...], Field(min_length=1)] = ("svm",)
    """What measures the student while it trains."""
    probe_store: str = ""
    """Store of labelled shapes that they measure on; empty takes the one trained on."""
    probe_ref: str = ""
    """Name of that store's ref; empty takes `data.ref`, or the only one."""
    probe_split: Annotated[str, Field(min_length=1)] = "test"
    """Split that they measure on; the SVM is fitted on "train"."""
    save_every: NonNegativeInt = 1000
    """Steps between checkpoints; 0 saves only at the end (and on Ctrl-C)."""
    keep_last: PositiveInt = 2
    """Checkpoints kept; older ones are deleted."""
    keep_best: str = ""
    """What one of `probes` finds, e.g. "svm_accuracy": the checkpoint where it was highest is kept besides."""


MEASURE = {"classify": "accuracy", "segment": "instance_miou"}
"""What tells the best epoch of a downstream task."""


@dataclass(frozen=True)
class Config:
    """All settings of one run. A recipe may leave out any of them."""

    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.data.dense and self.model.mask_type == "causal":
            raise ValueError(
                'data.dense: of model.mask_type "causal" a token knows the groups before its own; use "rand"'
            )
        if self.task.kind == "pretrain":
            return
        if self.data.dense:
            raise ValueError("data.dense: only pretraining learns from features of points; leave it out")
        if self.run.keep_best:
            raise ValueError("run.keep_best: pretraining's; downstream task.selection chooses the epoch")
        if (self.task.selection == "validation") != (self.data.hold_out > 0):
            raise ValueError(
                'data.hold_out: a share, e.g. 0.1, goes with task.selection "validation", and only with it'
            )
        if self.task.kind == "segment" and self.data.loader == "stream":
            raise ValueError('data.loader: "stream" reads no part labels; segmentation needs "map"')

    @property
    def keep_best(self) -> str:
        """By which measure the best checkpoint is kept; empty keeps none."""
        if self.task.kind == "pretrain":
            return self.run.keep_best
        return MEASURE[self.task.kind] if self.task.selection != "last" else ""
