"""`python -m recon.trainer`: the same as `recon-train`."""

from recon.trainer.cli import main

if __name__ == "__main__":  # a spawned worker imports this module too
    main()
