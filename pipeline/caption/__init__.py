"""Words for single shapes, a kind a file: facts, lists, taxonomies, files, CLIP's choice, captioning models."""
