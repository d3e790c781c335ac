"""The reader of untrusted pickles: what data sets hold is read in every protocol, all that could act is refused."""

from __future__ import annotations

import collections
import io
import os
import pickle
import pickletools
import re
import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recon.pipeline.base.errors import UserError
from recon.pipeline.sources import safe_pickle
from recon.pipeline.sources.safe_pickle import load_npy_object, load_pickle
from tests.miniature_meshes import message

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(type(a) is type(b) and a == b)


arrays = hnp.arrays(
    st.sampled_from(["<f4", ">f8", "<i8", "|u1", "|b1", "<f2", ">i2"]), hnp.array_shapes(min_dims=0, min_side=0)
)
leaves = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text()
containers = st.recursive(
    leaves | st.binary() | arrays,
    lambda inner: (
        st.lists(inner) | st.tuples(inner) | st.tuples(inner, inner, inner, inner) | st.dictionaries(st.text(), inner)
    ),
    max_leaves=8,
)


@given(value=containers, protocol=st.sampled_from(PROTOCOLS))
def test_reads_what_pickle_writes(tmp_path_factory: pytest.TempPathFactory, value: Any, protocol: int) -> None:
    path = write(tmp_path_factory.getbasetemp() / "any.pkl", pickle.dumps(value, protocol))
    assert same(value, load_pickle(path))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_orders_shared_arrays_and_numbers(tmp_path: Path, protocol: int) -> None:
    """Arrays refer to themselves through the memo before they are whole: a second reference must find the whole one."""
    fortran = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    value = {"a": fortran, "again": fortran, "number": np.float32(1.5), "nested": np.array({"x": 1}, dtype=object)}
    read = load_pickle(write(tmp_path / "a.pkl", pickle.dumps(value, protocol)))
    assert read["again"] is read["a"] and np.array_equal(read["a"], fortran)
    assert read["number"] == np.float32(1.5) and read["number"].dtype == np.float32
    assert read["nested"].shape == () and read["nested"].item() == {"x": 1}


@pytest.mark.parametrize("core", ["core", "_core"])
def test_both_names_of_numpys_functions(tmp_path: Path, core: str) -> None:
    """Files were written by numpy 1 and by numpy 2, whose modules have other names."""
    content = pickle.dumps(np.arange(4), 2)
    for name in (b"numpy._core", b"numpy.core"):
        content = content.replace(name + b".multiarray", b"numpy." + core.encode() + b".multiarray")
    assert np.array_equal(load_pickle(write(tmp_path / "a.pkl", content)), np.arange(4))


def test_python_2_strings(tmp_path: Path) -> None:
    """Python 2 keeps an array's bytes, and a dict's keys, in strings; bytes above 127 must survive."""
    data = bytes(range(248, 256)) + b"\n'\\\x00ab12"
    state = (
        b"(K\x01(K\x02tcnumpy\ndtype\n(U\x02f8K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbI00\n"
    )
    text = b"T" + struct.pack("<i", 16) + data
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR" + state + text + b"tb"
    read = load_pickle(write(tmp_path / "a.pkl", b"\x80\x02}U\x05train" + array + b"s."))
    assert read["train"].tobytes() == data
    quoted = array.replace(text, b"S" + repr(data)[1:].encode() + b"\n")
    assert load_pickle(write(tmp_path / "b.pkl", quoted + b".")).tobytes() == data


def test_arrays_are_views_of_the_file(tmp_path: Path) -> None:
    """A pickle of gigabytes must not be copied into every worker."""
    array = load_pickle(write(tmp_path / "a.pkl", pickle.dumps([np.zeros((1 << 16, 6), np.float32)], 4)))[0]
    assert not array.flags.owndata and not array.flags.writeable


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *values: Any, state: Any = None) -> None:
        self.parts = (function, values) if state is None else (function, values, state)

    def __reduce__(self) -> Any:
        return self.parts


def _trap() -> None:
    raise AssertionError("a pickle ran code")


class Sets:
    """Pickles as an object with a state to set."""

    def __init__(self) -> None:
        self.x = 1


HOSTILE = {
    "os.system": Calls(os.system, "exit 1"),
    "own function": Calls(_trap),
    "eval": Calls(eval, "1"),
    "getattr": Calls(getattr, [], "append"),
    "numpy.load": Calls(np.load, "x.npy"),
    "numpy.frombuffer": Calls(np.frombuffer, b"1234"),
    "numpy.memmap": Calls(np.memmap, "x", "u1"),
    "open": Calls(io.open, "/dev/null"),
    "class with state": Sets(),
    "state on a list": Calls(list, state={"append": 1}),
    "ordered dict": collections.OrderedDict(a=1),
    "partial": Calls(__import__("functools").partial, print, "x"),
    "masked array": np.ma.array([1.0, 2.0], mask=[True, False]),
    "fields": np.zeros(2, [("x", "f4")]),
    "path": Path("x"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_refuses_everything_else(tmp_path: Path, name: str, protocol: int) -> None:
    path = write(tmp_path / "bad.pkl", pickle.dumps({"train": [HOSTILE[name]]}, protocol))
    assert re.search(r"bad\.pkl: it .*nothing was run", message(lambda: load_pickle(path)))


def test_names_the_refused_function(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"it names 'posix\.system'"):
        load_pickle(write(tmp_path / "bad.pkl", pickle.dumps(Calls(os.system, "exit 1"))))


ARRAY = pickle.dumps(np.arange(3.0), 2).removesuffix(b".")
SHORT = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01"
F8 = b"cnumpy\ndtype\n(U\x02f8K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
HAND_MADE = {
    "state of a function": (b"cnumpy\ndtype\n}U\x0c__defaults__)sb.", "sets the state"),
    "slots of a function": (b"cnumpy\ndtype\nN}U\x0c__defaults__)s\x86b.", "sets the state"),
    "second state of an array": (ARRAY + b"(K\x01)tb.", "sets the state"),
    "call of an array": (ARRAY + b")R.", "calls something"),
    "call of a class": (b"cnumpy\nndarray\n)R.", "calls something"),
    "object of a class": (b"(cnumpy\nndarray\no.", "the instruction OBJ"),
    "name that is no word": (b"K\x01K\x02\x93.", "names a function by something"),
    "dotted name": (b"\x8c\x05numpy\x8c\x11ndarray.__class__\x93.", "names 'numpy.ndarray.__class__"),
    "persistent id": (b"P1\n.", "the instruction PERSID"),
    "extension": (b"\x82\x01.", "the instruction EXT1"),
    "new object": (b"cnumpy\nndarray\n)\x81.", "the instruction NEWOBJ"),
    "old instance": (b"(ios\nsystem\n.", "the instruction INST"),
    "array of a subclass": (b"cnumpy.core.multiarray\n_reconstruct\n(U\x01xK\x00U\x01btR.", "class of its own"),
    "exponential hash": (b"))" + b"\x86q\x00h\x00" * 60 + b"\x86K\x01}(h\x00K\x01u.", "keys are no words"),
    "array of a petabyte": (SHORT + b"(\x8a\x07\x00\x00\x00\x00\x00\x00\x04t" + F8 + b"I00\nU\x00tb.", "bytes"),
    "array of objects of a petabyte": (
        SHORT + b"(\x8a\x07\x00\x00\x00\x00\x00\x00\x04t" + F8.replace(b"f8", b"O8") + b"I00\n]tb.",
        "another number of them",
    ),
    "negative shape": (SHORT + b"(J\xff\xff\xff\xfft" + F8 + b"I00\nU\x00tb.", "no tuple of counts"),
    "bytes of a petabyte": (b"\x8e" + struct.pack("<Q", 1 << 50) + b".", "are left"),
    "negative length": (b"\x8d" + b"\xff" * 8 + b".", "are left"),
    "long number": (b"\x8b" + struct.pack("<i", 1000) + b"1" * 1000 + b".", "number of 1000 bytes"),
    "many digits": (b"L" + b"9" * 10000 + b"L\n.", "number of 10001 digits"),
    "void": (b"cnumpy\ndtype\n(U\x0bV1000000000K\x00K\x01tR.", "no plain number"),
    "number of objects": (b"cnumpy.core.multiarray\nscalar\n" + F8.replace(b"f8", b"O8") + b"U\x00\x86R.", "dtype"),
    "unfinished line": (b"cnumpy", "a line does not end"),
    "empty stack": (b"R.", "byte 1"),
    "no mark": (b"]e.", "a mark is missing"),
    "append to a number": (b"K\x01K\x02a.", "no list or dict"),
    "no stop": (b"K\x01", "byte 2"),
    "unknown instruction": (b"\xff.", "0xff"),
    "unknown memo": (b"h\x07.", "KeyError"),
    "text": (b"hello, this is no pickle", "pickle|instruction"),
}


@pytest.mark.parametrize("name", HAND_MADE)
def test_hand_made_programs(tmp_path: Path, name: str) -> None:
    """What no pickler writes: each of these did something, or cost something, in some reader."""
    content, words = HAND_MADE[name]
    said = message(lambda: load_pickle(write(tmp_path / "bad.pkl", content)))
    assert "bad.pkl" in said and re.search(words, said)


def test_as_many_instructions_as_a_data_set_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte of a file can ask for sixty of memory: an empty list."""
    monkeypatch.setattr(safe_pickle, "_MAX_STEPS", 100)
    assert len(load_pickle(write(tmp_path / "a.pkl", pickle.dumps([[]] * 40)))) == 40
    with pytest.raises(UserError, match="more than 100 instructions"):
        load_pickle(write(tmp_path / "b.pkl", b"]" * 200 + b"."))


@given(data=st.data())
def test_damage_is_an_error_or_other_data(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A flipped or missing byte never gives anything but plain data or the one error."""
    content = bytearray(
        pickle.dumps({"train": [(np.arange(6.0).reshape(2, 3), 1, "chair")]}, data.draw(st.integers(0, 5)))
    )
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[at] = data.draw(st.integers(0, 255))
    path = write(tmp_path_factory.getbasetemp() / "cut.pkl", bytes(content[: data.draw(st.integers(1, len(content)))]))
    try:
        load_pickle(path)
    except UserError as error:
        assert "cut.pkl" in str(error)


def test_knows_every_instruction_that_data_need() -> None:
    """A list of what is left out, so that a new instruction of Python is a decision."""
    left_out = {op.name for op in pickletools.opcodes if ord(op.code) not in safe_pickle._STEPS and op.code != "."}
    assert left_out == {
        *("EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "PERSID", "BINPERSID"),
        *("EMPTY_SET", "ADDITEMS", "FROZENSET", "NEXT_BUFFER", "READONLY_BUFFER"),
    }


def test_npy_object(tmp_path: Path) -> None:
    value: Any = {"xyz": np.ones((4, 3), np.float32), "text": ["a"]}
    np.save(tmp_path / "a.npy", value)
    assert same(load_npy_object(tmp_path / "a.npy"), value)
    np.save(tmp_path / "plain.npy", np.ones(3))
    np.save(tmp_path / "two.npy", np.array([{}, {}], dtype=object))
    np.save(tmp_path / "bad.npy", np.array(Calls(os.system, "exit 1"), dtype=object))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:90])
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "empty.npy").touch()
    for name, words in {
        "plain": "not one dict",
        "two": "not one dict",
        "bad": "nothing was run",
        "cut": "an .npy file|no readable pickle",
        "text": "not an .npy file",
        "empty": "cannot be read",
        "gone": "no such file",
    }.items():
        said = message(partial(load_npy_object, tmp_path / f"{name}.npy"))
        assert f"{name}.npy" in said and re.search(words, said)
