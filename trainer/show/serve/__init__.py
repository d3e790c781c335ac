"""A page on this machine over a run and a store: shapes, words for them, a map of them, and search."""
