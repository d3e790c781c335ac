"""A trained student at work: own files embedded, shapes found by words, pictures and meshes, and named."""
