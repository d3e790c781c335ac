"""The ground everything stands on: errors, digests, files, what this machine allows."""
