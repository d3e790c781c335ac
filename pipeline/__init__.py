"""Meshes to frozen teacher features: the stages behind `recon-pipeline` and the feature store they fill."""

if __name__ == "pipeline":
    from recon.former_names import moved, stands_aside

    if not stands_aside("pipeline"):
        raise moved("pipeline")
