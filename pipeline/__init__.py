"""Meshes to frozen teacher features: the stages behind `recon-pipeline` and the feature store they fill."""

if __name__ == "pipeline":
    raise ImportError("no module 'pipeline' any more: it is recon.pipeline (from recon.pipeline import ...)")
