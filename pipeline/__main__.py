"""`python -m recon.pipeline`: the same as `recon-pipeline`."""

from recon.pipeline.commands.cli import main

if __name__ == "__main__":  # a spawned worker imports this module too
    main()
