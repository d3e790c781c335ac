"""Arrays of a glTF that trimesh would misread, written anew as plain floats; and poses that it leaves out.

trimesh takes normalised integers for what they are, so that a shape of quantised positions comes out thousands of times
too large, and knows no sparse arrays, no morph weights and no skins. A skinned mesh stands where its joints are, and
not where its node is (glTF 2.0, section 3.7.3.3).
"""

from __future__ import annotations

import base64
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.shapes.mesh import Floats, MeshError

TYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
KINDS = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}
FLOAT, INDEX = 5126, 5125
FAN = 6
VISIBILITY = "KHR_node_visibility"
DRACO = "KHR_draco_mesh_compression"

Header = dict[str, Any]


class Buffers(Protocol):
    """Where an array's bytes come from."""

    def view(self, number: int) -> bytes:
        """The bytes of a view; FileNotFoundError where its buffer lies in a file that is not there."""
        ...

    def spend(self, num_bytes: int) -> None:
        """Count bytes that are about to be made. MeshError for too many."""
        ...


def plain_arrays(header: Header, buffers: Buffers) -> None:
    """Rewrite a header so that trimesh reads what the file says; FileNotFoundError is left to trimesh, which tells."""
    with suppress(FileNotFoundError):
        _Arrays(header, buffers).mend()


class _Arrays:
    def __init__(self, header: Header, buffers: Buffers) -> None:
        self.header, self.buffers = header, buffers
        self.accessors: list[dict[str, Any]] = header.get("accessors", [])
        self.nodes: list[dict[str, Any]] = header.get("nodes", [])
        self.meshes: list[dict[str, Any]] = header.get("meshes", [])
        self._plain: dict[int, int] = {}
        self._white: int | None = None

    def mend(self) -> None:
        self._hide()
        for mesh in self.meshes:
            for item in mesh.get("primitives", []):
                self._mend_primitive(item)
        self._pose()

    def _mend_primitive(self, item: dict[str, Any]) -> None:
        attributes = item["attributes"]
        for name, index in attributes.items():
            accessor = self.accessors[index]
            integers = accessor["componentType"] != FLOAT
            misread = integers and name.startswith(("POSITION", "NORMAL", "TEXCOORD"))
            if "sparse" in accessor or (misread and "bufferView" in accessor):
                attributes[name] = self._again(index)
        if "sparse" in self.accessors[item.get("indices", 0)] and "indices" in item:
            item["indices"] = self._add(self.values(item["indices"]).astype("<u4"))
        if item.get("mode", 4) == FAN:
            self._unfold(item)
        if "COLOR_0" in attributes and "material" not in item:  # whose colours trimesh makes bytes of, unscaled
            item["material"] = self._white_material()

    def _again(self, index: int) -> int:
        """The number of an array with the values of array `index` as floats."""
        if index not in self._plain:
            self._plain[index] = self._add(self.values(index).astype("<f4"))
        return self._plain[index]

    def _unfold(self, item: dict[str, Any]) -> None:
        """A fan of triangles as plain ones."""
        count = self.accessors[item["attributes"]["POSITION"]]["count"]
        fan = self.values(item["indices"])[:, 0] if "indices" in item else np.arange(count)
        around = np.stack([np.broadcast_to(fan[:1], max(len(fan) - 2, 0)), fan[1:-1], fan[2:]], 1)
        item["indices"], item["mode"] = self._add(around.reshape(-1, 1).astype("<u4")), 4

    def _white_material(self) -> int:
        """The number of a material for colours of vertices alone."""
        if self._white is None:
            materials = self.header.setdefault("materials", [])
            materials.append({})
            self._white = len(materials) - 1
        return self._white

    def values(self, index: int) -> Floats:
        """[count, width] of an array, normalised integers as the shares they mean."""
        accessor = self.accessors[index]
        dtype, count = np.dtype(TYPES[accessor["componentType"]]), accessor["count"]
        width = WIDTHS[accessor["type"]]
        if "bufferView" in accessor:
            found = self._rows(accessor["bufferView"], accessor.get("byteOffset", 0), dtype, count, width)
        else:
            found = np.zeros((count, width), dtype)
        sparse = accessor.get("sparse")
        if sparse is not None:
            at, new, number = sparse["indices"], sparse["values"], sparse["count"]
            places = self._rows(
                at["bufferView"], at.get("byteOffset", 0), np.dtype(TYPES[at["componentType"]]), number, 1
            )
            if number and places.max() >= count:
                raise MeshError("unreadable", "a sparse array names a row that it does not have")
            found = found.copy()
            found[places[:, 0]] = self._rows(new["bufferView"], new.get("byteOffset", 0), dtype, number, width)
        values = found.astype(np.float64)
        if accessor.get("normalized") and dtype.kind in "iu":
            values = np.maximum(values / np.iinfo(dtype).max, -1.0)
        return values

    def _rows(self, number: int, offset: int, dtype: np.dtype[Any], count: int, width: int) -> NDArray[Any]:
        """[count, width] of a view, whose rows may lie apart."""
        content = self.buffers.view(number)
        step = self.header["bufferViews"][number].get("byteStride") or width * dtype.itemsize
        needed = offset + step * (count - 1) + width * dtype.itemsize if count else 0
        if needed > len(content):
            raise MeshError("unreadable", f"an array needs {needed} bytes of a view of {len(content)}: cut off?")
        self.buffers.spend(count * width * 8)
        rows = np.ndarray((count, width), dtype, content, offset, (step, dtype.itemsize))
        return np.ascontiguousarray(rows)

    def _add(self, values: NDArray[Any]) -> int:
        """The number of a new array, whose bytes stand in the header's text."""
        content = values.tobytes()
        self.buffers.spend(2 * len(content))
        text = "data:application/octet-stream;base64," + base64.b64encode(content).decode()
        whole = self.header.setdefault("buffers", [])
        whole.append({"byteLength": len(content), "uri": text})
        views = self.header.setdefault("bufferViews", [])
        views.append({"buffer": len(whole) - 1, "byteOffset": 0, "byteLength": len(content)})
        kind = FLOAT if values.dtype.kind == "f" else INDEX
        shape = {"componentType": kind, "count": len(values), "type": KINDS[values.shape[1]]}
        self.accessors.append({"bufferView": len(views) - 1, "byteOffset": 0, **shape})
        return len(self.accessors) - 1

    # ---- what is shown, and in which pose

    def _hide(self) -> None:
        """Take the meshes from nodes that are not of the file's scene, or hidden."""
        scenes = self.header.get("scenes", [])
        roots = set(range(len(self.nodes))) - {c for node in self.nodes for c in node.get("children", [])}
        chosen = self.header.get("scene", 0)
        if not isinstance(chosen, int):
            raise MeshError("unreadable", f"its scene is {chosen!r}: should be a number")
        shown = set(scenes[chosen].get("nodes", [])) if chosen < len(scenes) else roots
        stack = [(root, root in shown) for root in sorted(roots | shown)]
        while stack:
            index, seen = stack.pop()
            node = self.nodes[index]
            seen = seen and node.get("extensions", {}).get(VISIBILITY, {}).get("visible", True)
            if not seen:
                node.pop("mesh", None)
            stack += [(child, seen) for child in node.get("children", [])]

    def _pose(self) -> None:
        """Give each mesh that a node bends a copy that is bent already."""
        bent = [
            i for i, node in enumerate(self.nodes) if "mesh" in node and ("skin" in node or self._weights(node).any())
        ]
        if not bent:
            return
        placed = self._placed()
        for index in bent:
            node = self.nodes[index]
            weights, skin = self._weights(node), node.pop("skin", None)
            joints = None if skin is None else self._joints(self.header["skins"][skin], placed)
            mesh = self.meshes[node.pop("mesh")]
            items = [self._bent(item, weights, joints) for item in mesh.get("primitives", [])]
            self.meshes.append({**mesh, "primitives": items})
            own = {"mesh": len(self.meshes) - 1, "name": node.get("name", mesh.get("name", ""))}
            if joints is not None:  # it stands where its joints are
                self.nodes.append(own)
                scene = self.header.get("scenes", [])[self.header.get("scene", 0) :][:1]
                for each in scene:
                    each.setdefault("nodes", []).append(len(self.nodes) - 1)
            else:
                node["mesh"] = own["mesh"]

    def _weights(self, node: dict[str, Any]) -> Floats:
        weights = node.get("weights", self.meshes[node["mesh"]].get("weights", []))
        return np.array(weights, np.float64)

    def _bent(self, item: dict[str, Any], weights: Floats, joints: Floats | None) -> dict[str, Any]:
        """A primitive with its positions where morph targets and joints [J, 4, 4] bring them."""
        if DRACO in item.get("extensions", {}):
            raise MeshError("unreadable", "it bends a compressed mesh, which is not read: export it without Draco")
        attributes = dict(item["attributes"])
        xyz = self.values(attributes["POSITION"])
        for weight, target in zip(weights, item.get("targets", []), strict=False):
            if weight and "POSITION" in target:
                xyz = xyz + weight * self.values(target["POSITION"])
        if joints is not None and "JOINTS_0" in attributes:
            total, sums = np.zeros_like(xyz), np.zeros((len(xyz), 1))
            for number in range(sum(name.startswith("JOINTS_") for name in attributes)):
                which = self.values(attributes[f"JOINTS_{number}"]).astype(np.int64)
                share = self.values(attributes[f"WEIGHTS_{number}"])
                if len(which) and which.max() >= len(joints):
                    raise MeshError("unreadable", "a vertex hangs on a joint that its skin does not have")
                for corner in range(which.shape[1]):
                    matrix = joints[which[:, corner]]
                    moved = np.einsum("nij,nj->ni", matrix[:, :3, :3], xyz) + matrix[:, :3, 3]
                    total += share[:, corner, None] * moved
                    sums += share[:, corner, None]
            xyz = np.where(sums > 0, total / np.where(sums > 0, sums, 1), xyz)
        attributes["POSITION"] = self._add(xyz.astype("<f4"))
        attributes.pop("NORMAL", None)
        return {**item, "attributes": attributes}

    def _joints(self, skin: dict[str, Any], placed: list[Floats]) -> Floats:
        """[J, 4, 4]: where each joint brings what is bound to it."""
        names = skin["joints"]
        back = np.broadcast_to(np.eye(4), (len(names), 4, 4))
        if "inverseBindMatrices" in skin:
            back = self.values(skin["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1)  # by columns
        if len(back) < len(names):
            raise MeshError("unreadable", "a skin has fewer matrices than joints")
        return np.stack([placed[joint] @ matrix for joint, matrix in zip(names, back, strict=False)])

    def _placed(self) -> list[Floats]:
        """[4, 4] of every node in the scene's coordinates; nodes are known to form trees."""
        placed = [_own(node) for node in self.nodes]
        stack = sorted(set(range(len(self.nodes))) - {c for node in self.nodes for c in node.get("children", [])})
        while stack:
            index = stack.pop()
            for child in self.nodes[index].get("children", []):
                placed[child] = placed[index] @ placed[child]
                stack.append(child)
        return placed


def _own(node: dict[str, Any]) -> Floats:
    """A node's own transform [4, 4]."""
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    x, y, z, w = np.array(node.get("rotation", (0, 0, 0, 1)), np.float64)
    turn = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    whole = np.eye(4)
    whole[:3, :3] = turn * np.array(node.get("scale", (1, 1, 1)), np.float64)
    whole[:3, 3] = node.get("translation", (0, 0, 0))
    return whole
