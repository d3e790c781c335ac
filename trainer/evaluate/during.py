"""The probes of a run while it trains, by the commands' own code, on the model in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from recon.pipeline.store import FeatureStore
from recon.trainer.config import Config
from recon.trainer.evaluate.features import FLOAT32, Probe, probed_ref
from recon.trainer.evaluate.svm import measure_svm, read_svm
from recon.trainer.evaluate.zero_shot import Shapes, measure_zero_shot, read_zero_shot
from recon.trainer.model.recon import ReCon


class DuringTraining:
    """Measures a model by `run.probes` on `run.probe_split` of a store, every `run.probe_every` steps."""

    def __init__(
        self, config: Config, run: Path, store: Path, learnt: dict[str, Any], model: ReCon, device: torch.device
    ) -> None:
        """`store` is the training's, unless `run.probe_store` names another; `learnt` is the record of the data.

        Every probe's shapes are read once here. UserError for a store, ref or split that is not there, and for
        whatever else the commands refuse.
        """
        settings = config.run
        opened = FeatureStore.open(Path(settings.probe_store or store))
        ref = probed_ref(opened, config, settings.probe_ref)
        self.every, self.run = settings.probe_every, run
        self._probe = Probe(model, None, config, opened, ref, device, FLOAT32, {}, settings.probe_split, learnt)
        self._svm = read_svm(self._probe) if "svm" in settings.probes else None
        self._zero_shot = self._read_zero_shot() if "zeroshot" in settings.probes else None

    def _read_zero_shot(self) -> Shapes:
        shapes = read_zero_shot(self.run, self._probe)
        return replace(shapes, clouds=shapes.clouds.kept())

    def due(self, step: int, num_steps: int) -> bool:
        """Whether a step is to be measured after: step 0 is the random start, and the last one always counts."""
        return step % self.every == 0 or step == num_steps

    def measure(self, model: ReCon) -> dict[str, float]:
        """Accuracies by their names in the commands' results; the model comes back in the mode it was in."""
        training, probe = model.training, replace(self._probe, student=model.eval())
        try:
            found: dict[str, Any] = {}
            if self._svm:
                found |= measure_svm(probe, self._svm)
            if self._zero_shot:
                found |= measure_zero_shot(probe, self._zero_shot)
        finally:
            model.train(training)
        return {name: value for name, value in found.items() if name.endswith("_accuracy")}
