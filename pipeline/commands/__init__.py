"""The command line, `recon-pipeline`."""
