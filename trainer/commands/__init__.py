"""The commands of `recon-train`, thin. Each imports what it needs when it is called."""
