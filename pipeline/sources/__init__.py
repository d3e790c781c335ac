"""Readers: one module a layout on disk, each turning a manifest into shapes and a shape into a mesh."""
