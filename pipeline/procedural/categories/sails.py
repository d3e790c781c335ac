"""Masts, sails and rigging of sailing boats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recon.pipeline.procedural.categories.hulls import Hull
from recon.pipeline.procedural.categories.vehicle_parts import rods
from recon.pipeline.procedural.designer import FABRIC, Designer
from recon.pipeline.procedural.geometry import loft
from recon.pipeline.shapes.mesh import Material


def sail(d: Designer, corners: Sequence[tuple[float, float]], belly: float, cloth: Material) -> None:
    """A triangle (tack, clew, head) in (z, y), bellied to starboard and thick enough to be a solid."""
    a, b, c = (np.array(p) for p in corners)
    thick = 0.012 * float(np.linalg.norm(c - a))
    shares = np.linspace(0, 1, 6)
    rings = []
    for f in shares:
        left, right = a + (c - a) * f, b + (c - b) * min(f, 0.985)
        row = [left + (right - left) * t for t in (0, 0.35, 0.7, 1.0)]
        bulge = [belly * np.sin(np.pi * t) * np.sin(np.pi * (0.25 + 0.7 * f)) for t in (0, 0.35, 0.7, 1.0)]
        outer = [(x + thick / 2, p[1], p[0]) for p, x in zip(row, bulge, strict=True)]
        inner = [(x - thick / 2, p[1], p[0]) for p, x in zip(row, bulge, strict=True)]
        rings.append(outer + inner[::-1])
    d.add("sail", loft(rings), cloth)


def rig(d: Designer, h: Hull, foot: float, base: float, wood: Material) -> None:
    """Mast, boom and sails; with a choice of rig."""
    cloth = d.material(FABRIC)
    tall = h.length * d.uniform("mast_height", 1.0, 1.45)
    rig = d.choice(
        "rig",
        {
            "sloop": "with a mainsail and a jib",
            "cat": "with a single sail",
            "ketch": "with two masts",
            "bare": "with its sails down",
        },
        [0.45, 0.2, 0.2, 0.15],
    )
    mast_z = h.z(foot + (0.2 if rig == "cat" else 0.0))
    radius = 0.008 * h.length
    boom_y, boom = base + 0.1 * tall, h.length * d.uniform("boom_length", 0.34, 0.48)
    masts = [(mast_z, tall, boom)] + ([(h.z(0.17), 0.62 * tall, 0.5 * boom)] if rig == "ketch" else [])
    belly = 0.08 * h.length * d.uniform("sail_belly", 0.3, 1.0)
    for z, height, reach in masts:
        d.add("mast", rods([[(0, 0.3 * h.depth, z), (0, base + height, z)]], radius, 0.6 * radius, sides=10), wood)
        d.add("mast", rods([[(0, boom_y, z), (0, boom_y, z - reach)]], 0.7 * radius, sides=8), wood)
        if rig != "bare":
            sail(
                d,
                [
                    (z - 0.02 * reach, boom_y + 2 * radius),
                    (z - 0.97 * reach, boom_y + 2 * radius),
                    (z - 0.02 * reach, base + 0.97 * height),
                ],
                belly,
                cloth,
            )
        else:
            d.add(
                "sail",
                rods(
                    [[(0, boom_y + 2 * radius, z - 0.05 * reach), (0, boom_y + 2 * radius, z - 0.95 * reach)]],
                    2 * radius,
                    radius,
                    sides=8,
                ),
                cloth,
            )
    if rig in ("sloop", "ketch"):
        stay = (h.z(0.97), float(h.edge(0.97)) + 0.03 * tall)
        sail(
            d,
            [stay, (mast_z - 0.1 * boom, base + 0.08 * tall), (mast_z + 0.06 * boom, base + 0.85 * tall)],
            belly,
            cloth,
        )
    stays = [
        ((0, base + 0.97 * tall, mast_z), (0, float(h.edge(0.98)), h.z(0.98))),
        ((0, base + 0.97 * tall, mast_z), (0, float(h.edge(0)), h.z(0.01))),
        ((0, base + 0.9 * tall, mast_z), (0.95 * float(h.width(foot)), float(h.edge(foot)), mast_z)),
        ((0, base + 0.9 * tall, mast_z), (-0.95 * float(h.width(foot)), float(h.edge(foot)), mast_z)),
    ]
    d.add("rigging", rods(stays, 0.002 * h.length, sides=4), wood)
