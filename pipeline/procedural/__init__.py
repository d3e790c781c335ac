"""The embedded data set: meshes drawn from parameters and a seed, in 24 categories of ShapeNet-55."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib import import_module

from recon.pipeline.base.errors import UserError
from recon.pipeline.procedural.designer import Designer
from recon.pipeline.shapes.mesh import Mesh

VERSION = 1  # raise it when any builder draws another mesh from the same seed

# ShapeNet-55 name -> (synset id, module that holds its builder)
CATEGORIES: dict[str, tuple[str, str]] = {
    "airplane": ("02691156", "airplane"),
    "bed": ("02818832", "beds"),
    "bench": ("02828884", "seating"),
    "bookshelf": ("02871439", "shelves"),
    "bottle": ("02876657", "vessels"),
    "bus": ("02924116", "buses"),
    "cabinet": ("02933112", "cabinets"),
    "car": ("02958343", "cars"),
    "chair": ("03001627", "chairs"),
    "clock": ("03046257", "clocks"),
    "display": ("03211117", "displays"),
    "faucet": ("03325088", "faucets"),
    "flowerpot": ("03991062", "pots"),
    "guitar": ("03467517", "instruments"),
    "lamp": ("03636649", "lamps"),
    "laptop": ("03642806", "devices"),
    "motorbike": ("03790512", "motorbike"),
    "mug": ("03797390", "vessels"),
    "piano": ("03928116", "pianos"),
    "rocket": ("04099429", "rocket"),
    "sofa": ("04256520", "seating"),
    "table": ("04379243", "tables"),
    "train": ("04468005", "train"),
    "watercraft": ("04530566", "watercraft"),
}


def shape_seed(category: str, seed: int, index: int) -> int:
    """The 63-bit seed of one shape of a data set drawn from `seed`."""
    digest = hashlib.sha256(f"procedural:{category}:{seed}:{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def build(category: str, seed: int) -> Mesh:
    """The mesh of one category for one seed: same arguments, same mesh, bit for bit."""
    if category not in CATEGORIES:
        raise UserError(f"category {category!r} has no embedded shapes; there are {', '.join(CATEGORIES)}")
    module = import_module(f"recon.pipeline.procedural.categories.{CATEGORIES[category][1]}")
    builder: Callable[[Designer], None] = module.BUILDERS[category]
    designer = Designer(category, seed)
    builder(designer)
    return designer.finish()
