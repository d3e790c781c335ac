"""Meshes to frozen teacher features: the stages behind `recon-pipeline` and the feature store they fill."""
