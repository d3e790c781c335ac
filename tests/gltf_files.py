"""Puts small glTF files together, whatever they are to hold."""

import base64
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from recon.pipeline.shapes.meshfile import MeshError, load_mesh

SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)
CODES = {"b": 5120, "B": 5121, "h": 5122, "H": 5123, "I": 5125, "f": 5126}
TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}


class Builder:
    """Puts a glTF together: each array becomes a view and an accessor."""

    def __init__(self) -> None:
        self.data = b""
        self.header: dict[str, Any] = {"asset": {"version": "2.0"}, "accessors": [], "bufferViews": []}
        self.header |= {"scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}], "meshes": [{"primitives": [{}]}]}

    @property
    def primitive(self) -> dict[str, Any]:
        return self.header["meshes"][0]["primitives"][0]

    def view(self, content: bytes) -> int:
        self.data += b"\0" * (-len(self.data) % 4)
        self.header["bufferViews"].append({"buffer": 0, "byteOffset": len(self.data), "byteLength": len(content)})
        self.data += content
        return len(self.header["bufferViews"]) - 1

    def array(self, values: Any, **extra: Any) -> int:
        values = np.ascontiguousarray(values)
        width = 1 if values.ndim == 1 else values.shape[1]
        code = CODES[values.dtype.char.replace("L", "I")]
        accessor = {"bufferView": self.view(values.tobytes()), "componentType": code, "count": len(values)}
        self.header["accessors"].append(accessor | {"type": TYPES[width]} | extra)
        return len(self.header["accessors"]) - 1

    def square(self, **attributes: int) -> "Builder":
        self.primitive["attributes"] = {"POSITION": self.array(SQUARE), **attributes}
        self.primitive["indices"] = self.array(np.array([0, 1, 2, 0, 2, 3], np.uint16))
        return self

    def material(self, color: tuple[int, ...] | None = None, **look: Any) -> "Builder":
        """With a base colour picture of one colour when one is given."""
        if color is not None:
            buffer = io.BytesIO()
            Image.new("RGBA" if len(color) == 4 else "RGB", (2, 2), color).save(buffer, "PNG")
            self.header["images"] = [{"bufferView": self.view(buffer.getvalue()), "mimeType": "image/png"}]
            self.header["textures"] = [{"source": 0}]
        self.header["materials"] = [look]
        self.primitive["material"] = 0
        return self

    def write(self, path: Path) -> Path:
        header = {**self.header, "buffers": [{"byteLength": len(self.data)}]}
        if path.suffix == ".gltf":
            header["buffers"][0]["uri"] = "data:;base64," + base64.b64encode(self.data).decode()
            path.write_text(json.dumps(header))
            return path
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 4)
        binary = self.data + b"\0" * (-len(self.data) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
        path.write_bytes(b"glTF" + struct.pack("<II", 2, 12 + len(chunks)) + chunks)
        return path

    def load(self, folder: Path, name: str = "a.glb") -> Any:
        return load_mesh(self.write(folder / name), folder)

    def refusal(self, folder: Path) -> MeshError:
        with pytest.raises(MeshError) as caught:
            self.load(folder)
        assert "a.glb" in str(caught.value) and "\n" not in str(caught.value)
        return caught.value
