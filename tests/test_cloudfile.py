"""Files of points: every format gives the same cloud, and what is no such file is one line."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from recon.pipeline.shapes.cloudfile import SUFFIXES, _unpacked, load_cloud
from recon.pipeline.shapes.columns import names_in, names_of, of_columns
from recon.pipeline.shapes.mesh import MeshError

XYZ = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
HEADER = "VERSION 0.7\nFIELDS rgb x y z\nSIZE 4 4 4 4\nTYPE U F F F\nCOUNT 1 1 1 1\nPOINTS {points}\nDATA {data}\n"


def packed(body: bytes) -> bytes:
    """LZF without a copy: literals of 32 bytes."""
    out = b"".join(bytes([len(part) - 1]) + part for part in (body[i : i + 32] for i in range(0, len(body), 32)))
    return struct.pack("<II", len(out), len(body)) + out


def written(folder: Path, name: str) -> Path:
    """The cloud in a format, the file's name saying which."""
    path = folder / name
    rows = np.zeros(len(XYZ), [("rgb", "<u4"), ("x", "<f4"), ("y", "<f4"), ("z", "<f4")])
    rows["x"], rows["y"], rows["z"] = XYZ.T
    if name.endswith(".npy"):
        np.save(path, np.concatenate([XYZ, np.ones_like(XYZ)], axis=1))
    elif name.endswith((".xyz", ".txt")):
        comma = "," if name == "comma.xyz" else " "
        path.write_text("# x y z\n" + "".join(comma.join(f"{v:.9g}" for v in (*point, 7)) + "\n" for point in XYZ))
    elif name.endswith(".pcd"):
        data = name.removesuffix(".pcd")
        text = "".join("0 " + " ".join(f"{v:.9g}" for v in point) + "\n" for point in XYZ).encode()
        columns = b"".join(rows[field].tobytes() for field in ("rgb", "x", "y", "z"))
        body = {"ascii": text, "binary": rows.tobytes(), "binary_compressed": packed(columns)}[data]
        path.write_bytes(HEADER.format(points=len(XYZ), data=data).encode() + body)
    elif name.endswith(".obj"):
        path.write_text("".join("v " + " ".join(f"{v:.9g}" for v in point) + "\n" for point in XYZ))
    elif name.endswith(".las"):
        laspy = pytest.importorskip("laspy")
        las = laspy.create()
        las.header.scales, las.header.offsets = [1e-6] * 3, [0, 0, 0]
        las.x, las.y, las.z = XYZ.astype(np.float64).T
        las.write(path)
    else:
        trimesh.Scene(trimesh.PointCloud(XYZ)).export(path) if name == "a.glb" else trimesh.PointCloud(XYZ).export(path)
    return path


FILES = ("a.npy", "a.xyz", "comma.xyz", "a.txt", "ascii.pcd", "binary.pcd", "binary_compressed.pcd", "a.obj", "a.ply",
         "a.glb", "a.las")  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_points(tmp_path: Path, name: str) -> None:
    found = load_cloud(written(tmp_path, name), tmp_path).xyz
    middle = (XYZ.min(0) + XYZ.max(0)) / 2
    np.testing.assert_allclose(found, XYZ - middle, atol=3e-6)


COLOR = np.random.default_rng(1).integers(0, 256, (40, 3)).astype(np.uint8)
"""sRGB."""


def colored(folder: Path, name: str) -> Path:
    """The cloud with its colours."""
    path = folder / name
    lines = [f"{' '.join(f'{v:.9g}' for v in point)} " for point in XYZ]
    if name.startswith("shares"):  # floats from 0 to 1
        shares = [" ".join(f"{v:.9g}" for v in color / 255) for color in COLOR]
        names = "".join(f"property float {each}\n" for each in ("x", "y", "z", "red", "green", "blue"))
        head = f"ply\nformat ascii 1.0\nelement vertex {len(XYZ)}\n{names}end_header\n" if name.endswith("ply") else ""
        put = "" if head else "v "
        path.write_text(head + "".join(f"{put}{a}{b}\n" for a, b in zip(lines, shares, strict=True)))
    elif name.endswith(".pcd"):
        rows = np.zeros(len(XYZ), [("rgb", "<u4"), ("x", "<f4"), ("y", "<f4"), ("z", "<f4")])
        rows["x"], rows["y"], rows["z"] = XYZ.T
        rows["rgb"] = COLOR.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
        data = name.removesuffix(".pcd")
        text = "".join(f"{rgb} {line}\n" for rgb, line in zip(rows["rgb"].tolist(), lines, strict=True)).encode()
        columns = b"".join(rows[field].tobytes() for field in ("rgb", "x", "y", "z"))
        body = {"ascii": text, "binary": rows.tobytes(), "binary_compressed": packed(columns)}[data]
        path.write_bytes(HEADER.format(points=len(XYZ), data=data).encode() + body)
    elif name.endswith(".las"):
        laspy = pytest.importorskip("laspy")
        las = laspy.create(point_format=2)
        las.header.scales, las.header.offsets = [1e-6] * 3, [0, 0, 0]
        las.x, las.y, las.z = XYZ.astype(np.float64).T
        las.red, las.green, las.blue = COLOR.astype(np.uint16).T * 257
        las.write(path)
    else:
        cloud = trimesh.PointCloud(XYZ, colors=COLOR)
        trimesh.Scene(cloud).export(path) if name.endswith(".glb") else cloud.export(path)
    return path


@pytest.mark.parametrize(
    "name", ["a.ply", "shares.ply", "shares.obj", "a.glb", "ascii.pcd", "binary.pcd", "binary_compressed.pcd", "a.las"]
)
def test_every_format_gives_the_same_colours(tmp_path: Path, name: str) -> None:
    found = load_cloud(colored(tmp_path, name), tmp_path)
    shares = COLOR / 255
    linear = (
        shares if name == "a.glb" else np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    )
    assert found.color is not None and found.color.dtype == np.uint8
    np.testing.assert_array_equal(found.color, np.rint(255 * linear))
    np.testing.assert_allclose(found.xyz, XYZ - (XYZ.min(0) + XYZ.max(0)) / 2, atol=3e-6)


@pytest.mark.parametrize(
    ("shade", "said"),
    [
        (np.nan, "hold values that are not finite"),
        (-0.25, "hold -0.25 to 0.5, which are no colours"),
        (7e4, "hold 0.5 to 70000, which are no colours"),
    ],
)
def test_named_colours_that_can_be_none_are_told(tmp_path: Path, shade: float, said: str) -> None:
    """As those of columns are, and not taken for black or white."""
    names = "".join(f"property float {name}\n" for name in ("x", "y", "z", "red", "green", "blue"))
    lines = [" ".join(map(str, [*point, 0.5, 0.5, shade if at == 2 else 0.5])) for at, point in enumerate(XYZ.tolist())]
    head = f"ply\nformat ascii 1.0\nelement vertex {len(XYZ)}\n{names}end_header\n"
    path = tmp_path / "a.ply"
    path.write_text(head + "\n".join(lines) + "\n")
    with pytest.raises(MeshError) as caught:
        load_cloud(path, tmp_path)
    assert str(caught.value) == f"wrong-color: {path}: colours of points: {said}"


@pytest.mark.parametrize("name", ["a.npy", "a.xyz", "a.obj", "a.ply", "a.glb", "a.las"])
def test_what_says_no_colour_has_none(tmp_path: Path, name: str) -> None:
    assert load_cloud(written(tmp_path, name), tmp_path).color is None


def test_every_suffix_is_tried() -> None:
    assert {Path(name).suffix for name in FILES} | {".gltf"} == {*SUFFIXES}


def test_axes_are_turned(tmp_path: Path) -> None:
    path = written(tmp_path, "a.npy")
    plain, turned = load_cloud(path, tmp_path).xyz, load_cloud(path, tmp_path, "+Z", "-Y").xyz
    np.testing.assert_allclose(turned, plain[:, [0, 2, 1]] * [1, 1, -1], atol=1e-6)


def test_points_in_a_country_s_coordinates_stay_apart(tmp_path: Path) -> None:
    np.save(tmp_path / "far.npy", XYZ.astype(np.float64) + np.array([4.5e5, 5.4e6, 300]))
    middle = (XYZ.min(0) + XYZ.max(0)) / 2
    np.testing.assert_allclose(load_cloud(tmp_path / "far.npy", tmp_path).xyz, XYZ - middle, atol=1e-6)


def test_missing_points_of_a_pcd_are_left_out(tmp_path: Path) -> None:
    rows = np.concatenate([XYZ, np.full((3, 3), np.nan, np.float32)])
    body = np.concatenate([np.zeros((len(rows), 1), np.float32), rows], axis=1).tobytes()
    (tmp_path / "a.pcd").write_bytes(HEADER.format(points=len(rows), data="binary").encode() + body)
    assert len(load_cloud(tmp_path / "a.pcd", tmp_path).xyz) == len(XYZ)


BAD: dict[str, tuple[str, bytes, str]] = {
    "empty text": ("a.xyz", b"", "no-points"),
    "two columns": ("a.xyz", b"1 2\n", "not \\[points, 3\\]"),
    "words": ("a.xyz", b"hello there you\n", "could not convert"),
    "no npy": ("a.npy", b"hello", "unreadable"),
    "a pickle": ("a.npy", b"\x93NUMPY\x01\x00\x46\x00{'descr': '|O', 'fortran_order': False, 'shape': (1, 3), }" + b" " * 14 + b"\n\x80\x04N.", "unreadable"),  # noqa: E501
    "more than there is": ("a.npy", b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f8', 'fortran_order': False, 'shape': (999999999, 3), }", "unreadable"),  # noqa: E501
    "no pcd": ("a.pcd", b"x", "lacks DATA, FIELDS"),
    "a pcd cut off": ("a.pcd", HEADER.format(points=40, data="binary").encode() + b"x" * 100, "cut off"),
    "a pcd of nothing": ("a.pcd", HEADER.format(points=0, data="ascii").encode(), "no-points"),
    "a pcd of less than nothing": ("a.pcd", HEADER.format(points=-4, data="binary").encode(), "no-points"),
    "a pcd's packing": ("a.pcd", HEADER.format(points=4, data="binary_compressed").encode() + struct.pack("<IIBBB", 3, 64, 255, 255, 255), "damaged|IndexError|cut off"),  # noqa: E501
    "an empty ply": ("a.ply", b"ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nproperty float y\nproperty float z\nend_header\n", "no-points"),  # noqa: E501
    "no las": ("a.las", b"LASF", "unreadable"),
    "another suffix": ("a.jpg", b"", "no reader for .jpg"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_cloud_is_one_line(tmp_path: Path, case: str) -> None:
    name, content, said = BAD[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MeshError, match=said) as refused:
        load_cloud(tmp_path / name, tmp_path)
    assert "\n" not in str(refused.value) and str(tmp_path / name) in str(refused.value)


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.where(XYZ > 1, np.nan, XYZ))
    with pytest.raises(MeshError, match="non-finite"):
        load_cloud(tmp_path / "a.npy", tmp_path)


def test_copies_that_run_into_themselves_are_unpacked() -> None:
    # "ab", then 3 + 2 bytes from two back: "abababa"
    source = bytes([1]) + b"ab" + bytes([3 << 5, 1])
    assert _unpacked(struct.pack("<II", len(source), 7) + source, 7) == b"abababa"


@given(st.sampled_from([name for name in FILES if name != "a.las"]), st.integers(0, 10**6), st.binary(max_size=6))
def test_damaged_files_are_one_line(tmp_path_factory: pytest.TempPathFactory, name: str, at: int, put: bytes) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    path = written(folder, name)
    content = path.read_bytes()
    at %= len(content)
    path.write_bytes(content[:at] + put + content[at + (len(put) or len(content)) :])
    try:
        assert load_cloud(path, folder).xyz.shape[1] == 3
    except MeshError as error:
        assert "\n" not in str(error)


# ---- columns of numbers, which only names tell apart

SHARES = COLOR / 255
LINEAR = np.rint(255 * np.where(SHARES <= 0.04045, SHARES / 12.92, ((SHARES + 0.055) / 1.055) ** 2.4))
NORMAL = (XYZ / np.linalg.norm(XYZ, axis=1, keepdims=True)).astype(np.float32)


def table(path: Path, *columns: NDArray[Any], above: str = "") -> Path:
    rows = np.concatenate([np.asarray(each, np.float64) for each in columns], axis=1)
    if path.suffix == ".npy":
        np.save(path, rows)
    else:
        lines = "".join(" ".join(f"{value:.9g}" for value in row) + "\n" for row in rows)
        path.write_text(f"{above}\n{lines}" if above else lines)
    return path


@pytest.mark.parametrize("name", ["a.npy", "a.xyz", "a.txt"])
@pytest.mark.parametrize("shades", [COLOR, SHARES, COLOR.astype(np.int64) * 257], ids=["bytes", "shares", "16 bits"])
def test_columns_that_are_named_are_colours(tmp_path: Path, name: str, shades: NDArray[Any]) -> None:
    path = table(tmp_path / name, XYZ, shades)
    found = load_cloud(path, tmp_path, names=("x", "y", "z", "r", "g", "b"))
    assert found.color is not None and found.unnamed == 0
    np.testing.assert_array_equal(found.color, LINEAR)
    np.testing.assert_array_equal(found.xyz, load_cloud(path, tmp_path).xyz)


@pytest.mark.parametrize("name", ["a.npy", "a.xyz"])
def test_columns_in_any_order_and_others_between(tmp_path: Path, name: str) -> None:
    names = ("label", "z", "r", "g", "b", "x", "y", "nx", "ny", "nz")
    z, x, y = XYZ[:, 2:], XYZ[:, :1], XYZ[:, 1:2]
    found = load_cloud(table(tmp_path / name, x > 0, z, COLOR, x, y, NORMAL), tmp_path, names=names)
    np.testing.assert_array_equal(found.color, LINEAR)
    np.testing.assert_array_equal(found.xyz, load_cloud(table(tmp_path / f"plain-{name}", XYZ), tmp_path).xyz)


@pytest.mark.parametrize("name", ["a.npy", "a.xyz"])
@pytest.mark.parametrize(
    "more", [NORMAL, np.abs(NORMAL), COLOR, SHARES], ids=["normals", "outwards", "bytes", "shares"]
)
def test_columns_without_names_are_no_colours(tmp_path: Path, name: str, more: NDArray[Any]) -> None:
    found = load_cloud(table(tmp_path / name, XYZ, more), tmp_path)
    assert found.color is None and found.unnamed == 3


@pytest.mark.parametrize(
    ("above", "colored", "unnamed"),
    [
        ("//X Y Z R G B", True, 0),
        ("# x, y, z, red, green, blue", True, 0),
        ("//X Y Z Rf Gf Bf\n# made by hand", True, 0),
        ("# x y z nx ny nz", False, 0),
        ("# x y z", False, 3),
        ("# x y z r g b label", False, 3),
        ("# r g b x y z", False, 3),
        ("# points of a chair, made by us", False, 3),
        ("# x y z r r b", False, 3),
    ],
)
def test_a_comment_above_the_numbers_names_them(tmp_path: Path, above: str, colored: bool, unnamed: int) -> None:
    found = load_cloud(table(tmp_path / "a.xyz", XYZ, COLOR, above=above), tmp_path)
    assert found.unnamed == unnamed and (found.color is not None) == colored
    if colored:
        np.testing.assert_array_equal(found.color, LINEAR)
    np.testing.assert_allclose(found.xyz, XYZ - (XYZ.min(0) + XYZ.max(0)) / 2, atol=3e-6)


def test_what_is_asked_for_stands_above_what_the_file_says(tmp_path: Path) -> None:
    path = table(tmp_path / "a.xyz", XYZ, COLOR, above="# x y z r g b")
    assert load_cloud(path, tmp_path, names=("x", "y", "z", "u", "v", "w")).color is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (NORMAL, r"columns r, g, b: hold -0\.\d+ to 0\.\d+, which are no colours; name them otherwise"),
        (COLOR * 1000.0, r"hold 5000 to 251000, which are no colours"),
        (np.where(SHARES > 0.9, np.nan, SHARES), "columns r, g, b: hold values that are not finite"),
        (SHARES[:, :2], r"holds 5 columns, and 6 are named, x,y,z,r,g,b: name every column"),
    ],
    ids=["normals", "too large", "no numbers", "too few"],
)
def test_columns_that_can_be_no_colours(tmp_path: Path, more: NDArray[Any], said: str) -> None:
    path = table(tmp_path / "a.npy", XYZ, more)
    with pytest.raises(MeshError, match=rf": {path}: .*{said}"):
        load_cloud(path, tmp_path, names=("x", "y", "z", "r", "g", "b"))


@given(st.permutations(["x", "y", "z", "r", "g", "b", "nx", "label"]), st.integers(3, 8))
def test_every_order_of_columns_is_put_right(order: list[str], kept: int) -> None:
    held = dict(zip(["x", "y", "z", "r", "g", "b", "nx", "label"], range(8), strict=True))
    names = names_of(order[:kept])
    there = {*"xyz"} <= {*order[:kept]} and len({*"rgb"} & {*order[:kept]}) in (0, 3)
    assert (names == tuple(order[:kept])) if there else (names is None)
    if names:
        rows = np.tile([held[name] / 8 for name in names], (5, 1))
        xyz, color, unnamed = of_columns(rows, names)
        assert (xyz == [0, 1 / 8, 2 / 8]).all() and unnamed == 0 and (color is not None) == ("r" in names)
        assert color is None or (np.diff(color, axis=1) > 0).all()


@given(st.text(max_size=60))
def test_any_comment_is_read(comment: str) -> None:
    names = names_in(comment)
    assert names == () or names[:3] == ("x", "y", "z")


def test_a_file_of_nothing_has_no_columns_to_name(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("# x y z r g b\n")
    with pytest.raises(MeshError, match=r"no-points: .*a\.xyz: the cloud is empty"):
        load_cloud(tmp_path / "a.xyz", tmp_path, names=("x", "y", "z", "r", "g", "b"))
