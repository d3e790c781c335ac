"""The builders of the embedded shapes, a family a module; `BUILDERS` in each maps a category to its function.

Shared pieces: `joinery` (furniture), `vehicle_parts`, `wagons`, `hulls`, `sails`, `dials`, `guitar_bodies`, `plants`.
"""
