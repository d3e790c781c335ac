"""What a run looks like: figures and the report."""
