"""A manifest into a store: which stages there are, run, planned and reported alike."""
