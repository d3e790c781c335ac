"""Files of weights: a run's own, those of earlier versions, and the release's."""
