"""Pickles of data sets, read without running anything that they name.

Published clouds come as pickles of numpy arrays in lists, tuples and dicts. Python's own reader calls whatever function
a file names, so a file that someone passed on can do what it likes. This reader knows the instructions for data only;
of functions it knows those that rebuild arrays, numbers, dtypes and bytes, under numpy 1's and 2's names, and does
their work itself: nothing is imported, called or set on anything. Bytes stay where they are, in the mapped file: arrays
are read-only views of it, so a pickle of gigabytes costs its readers no memory of their own.
"""

from __future__ import annotations

import codecs
import math
import mmap
import pickletools
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from recon.pipeline.base.errors import UserError

_DTYPE = re.compile(r"[<>=|]?([?]|[biufcSUO]\d{0,4})")
_MAX_INTEGER_BYTES = 16  # shapes and labels are smaller; a number of megabytes takes minutes to print
_MAX_STEPS = 2_000_000  # ModelNet40 takes 400,000; a byte of the file can ask for sixty of memory
_SMALL = 4096  # bytes up to which a copy is cheaper than a view


class Refused(Exception):
    """What a pickle asks for and data have no need of."""


class _Named:
    """A function or class that the file names; it is never looked up."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Unfinished:
    """An array or dtype whose BUILD instruction is still to come, and where the memo holds it."""

    def __init__(self, dtype: np.dtype[Any] | None) -> None:
        self.dtype = dtype  # None: an array
        self.slots: list[int] = []


_MARK = object()


def load_pickle(path: Path) -> Any:
    """What a pickle of plain containers and numpy arrays holds; arrays are read-only views of the file.

    UserError, one line: an unreadable file, or one that asks for anything else. Python 2's strings are read as Latin-1.
    """
    return _load(path, _map(path), 0)


def load_npy_object(path: Path) -> Any:
    """The one object in an .npy file that `numpy.save` wrote of a dict. UserError as `load_pickle`."""
    return _load_npy(path, "one dict")[0]


def load_npy_objects(path: Path) -> list[Any]:
    """The objects in an .npy file that `numpy.save` wrote of a list of dicts, or of one. UserError as `load_pickle`."""
    return _load_npy(path, "a list of dicts")


def _load_npy(path: Path, wanted: str) -> list[Any]:
    held = _map(path)
    with path.open("rb") as file:
        try:
            read = {1: npy_format.read_array_header_1_0, 2: npy_format.read_array_header_2_0}
            shape, _, dtype = read[npy_format.read_magic(file)[0]](file)
        except (ValueError, KeyError, EOFError) as error:
            raise UserError(f"{path}: not an .npy file ({_line(error)}); download it again") from error
        start = file.tell()
    single = wanted == "one dict"
    if not dtype.hasobject or (math.prod(shape) != 1 if single else len(shape) > 1):
        raise UserError(f"{path}: holds an array {list(shape)} of {dtype}, not {wanted}; it is no file of this layout")
    array = _load(path, held, start)
    if not isinstance(array, np.ndarray) or array.size != math.prod(shape):
        raise UserError(f"{path}: its header and its contents disagree; download it again")
    return list(array.reshape(-1))


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise UserError(f"{path}: cannot be read ({_line(error)})") from error


def _load(path: Path, held: mmap.mmap, start: int) -> Any:
    machine = _Machine(held, start)
    try:
        return machine.run()
    except Refused as error:
        raise UserError(f"{path}: {error}; only numpy arrays in plain containers are read, nothing was run") from None
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, struct.error, AttributeError) as error:
        raise UserError(f"{path}: no readable pickle at byte {machine.at} ({_line(error)})") from error


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


class _Machine:
    """The stack machine that a pickle is a program for, with the instructions for data only."""

    def __init__(self, held: mmap.mmap, start: int) -> None:
        self.held, self.view, self.at = held, memoryview(held), start
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(_MAX_STEPS):
            code = self.view[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                return self.stack[-1]
            step = _STEPS.get(code)
            if step is None:
                names = {op.code: op.name for op in pickletools.opcodes}
                raise Refused(f"it uses the instruction {names.get(chr(code), hex(code))}")
            step(self)
        raise Refused(f"it has more than {_MAX_STEPS} instructions")

    # ---- reading

    def take(self, count: int) -> memoryview:
        """The next bytes. A declared length is compared with what is there before anything is made of it."""
        if not 0 <= count <= len(self.view) - self.at:
            raise ValueError(f"{count} bytes are promised and {len(self.view) - self.at} are left")
        self.at += count
        return self.view[self.at - count : self.at]

    def number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def sized(self, size: int) -> memoryview:
        return self.take(self.number(size))

    def line(self) -> bytes:
        end = self.held.find(b"\n", self.at)
        if end < 0:
            raise ValueError("a line does not end")
        text = bytes(self.take(end - self.at))
        self.at += 1
        return text

    # ---- the stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is _MARK:
                items = self.stack[at + 1 :]
                del self.stack[at:]
                return items
        raise ValueError("a mark is missing")

    def keep(self, slot: int) -> None:
        self.memo[slot] = self.stack[-1]
        if isinstance(self.stack[-1], _Unfinished):
            self.stack[-1].slots.append(slot)

    def extend(self, items: list[Any]) -> None:
        self._top(list).extend(items)

    def update(self, items: list[Any]) -> None:
        keys = items[::2]
        # hashing a tuple of tuples that share their members takes time exponential in its depth
        if not all(key is None or isinstance(key, str | bytes | int | float) for key in keys):
            raise Refused("it has a dict whose keys are no words or numbers")
        self._top(dict).update(zip(keys, items[1::2], strict=True))

    def dict_of(self, items: list[Any]) -> None:
        self.push({})
        self.update(items)

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise ValueError("the stack is empty")
        self.stack[len(self.stack) - count :] = [tuple(self.stack[len(self.stack) - count :])]

    def named(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refused("it names a function by something that is no word")
        if f"{module}.{name}" not in _KNOWN:
            raise Refused(f"it names {f'{module}.{name}'[:80]!r}")
        self.push(_Named(f"{module}.{name}"))

    def reduce(self) -> None:
        values, function = self.stack.pop(), self.stack.pop()
        rebuild = _FUNCTIONS.get(function.name) if isinstance(function, _Named) else None
        if rebuild is None or not isinstance(values, tuple):
            raise Refused("it calls something that is no function for rebuilding arrays")
        self.push(rebuild(*values))

    def build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if not isinstance(made, _Unfinished) or not isinstance(state, tuple):
            raise Refused("it sets the state of something that is no array")
        value = _array(*state[1:5]) if made.dtype is None else _with_order(made.dtype, state)
        self.stack[-1] = value
        self.memo |= dict.fromkeys(made.slots, value)

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise Refused("it adds items to something that is no list or dict")
        return self.stack[-1]


def _array(shape: Any, dtype: Any, fortran: Any, data: Any) -> NDArray[Any]:
    """numpy's state of an array; the values are looked at where they are."""
    if not isinstance(dtype, np.dtype) or not isinstance(shape, tuple) or len(shape) > 32:
        raise ValueError("an array without a dtype or shape")
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("an array's shape is no tuple of counts")
    count = math.prod(shape)
    if dtype.hasobject:
        if not isinstance(data, list) or len(data) != count:
            raise ValueError(f"an array {list(shape)} of objects has another number of them")
        flat = np.empty(count, object)
        for i, item in enumerate(data):
            flat[i] = item
    else:
        raw = data.encode("latin-1") if isinstance(data, str) else data
        if not isinstance(raw, bytes | memoryview) or len(raw) != count * dtype.itemsize:
            raise ValueError(f"an array {list(shape)} of {dtype} has another number of bytes")
        flat = np.frombuffer(raw, dtype) if len(raw) else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    return _array(shape, dtype, order == "F", data)


def _scalar(dtype: Any, data: Any) -> Any:
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise ValueError("a number without a dtype")
    return _array((), dtype, False, data)[()]


def _dtype(text: Any, *flags: Any) -> _Unfinished:
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise Refused("it has an array of a type that is no plain number, word or object")
    return _Unfinished(np.dtype(text))


def _with_order(dtype: np.dtype[Any], state: tuple[Any, ...]) -> np.dtype[Any]:
    if len(state) < 5 or any(field is not None for field in state[2:5]):
        raise Refused("it has an array with named fields")
    return dtype.newbyteorder(state[1]) if state[1] in ("<", ">") else dtype


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Unfinished:
    if not isinstance(kind, _Named) or kind.name != "numpy.ndarray":
        raise Refused("it has an array of a class of its own")
    return _Unfinished(None)


def _encode(text: Any, encoding: Any) -> bytes:
    """How protocol 2 of Python 3 writes bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused("it encodes something that is no text")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    """How protocols below 3 write bytes of no length."""
    return b""


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _dtype,
    "_codecs.encode": _encode,
    "__builtin__.bytes": _no_bytes,
    "builtins.bytes": _no_bytes,
}
for _core in ("numpy.core", "numpy._core"):  # numpy 1 and 2
    _FUNCTIONS[f"{_core}.multiarray._reconstruct"] = _reconstruct
    _FUNCTIONS[f"{_core}.multiarray.scalar"] = _scalar
    _FUNCTIONS[f"{_core}.numeric._frombuffer"] = _from_buffer
_KNOWN = {*_FUNCTIONS, "numpy.ndarray"}


def _small(data: memoryview) -> bytes | memoryview:
    return bytes(data) if len(data) <= _SMALL else data


def _integer(data: memoryview) -> int:
    if len(data) > _MAX_INTEGER_BYTES:
        raise Refused(f"it has a number of {len(data)} bytes")
    return int.from_bytes(data, "little", signed=True)


def _decimal(line: bytes) -> int | bool:
    if line in (b"00", b"01"):  # how protocol 0 writes False and True
        return line == b"01"
    if len(line) > 3 * _MAX_INTEGER_BYTES:
        raise Refused(f"it has a number of {len(line)} digits")
    return int(line.removesuffix(b"L"))


def _quoted(line: bytes) -> str:
    """A string of Python 2 in protocol 0, with its quotes and escapes."""
    if len(line) < 2 or line[:1] not in b"'\"" or line[-1:] != line[:1]:
        raise ValueError("a string without quotes")
    return codecs.escape_decode(line[1:-1])[0].decode("latin-1")


_STEPS: dict[int, Callable[[_Machine], Any]] = {
    ord(code): step
    for code, step in {
        # what changes nothing
        "\x80": lambda m: m.take(1),
        "\x95": lambda m: m.take(8),
        # values
        "N": lambda m: m.push(None),
        "\x88": lambda m: m.push(True),
        "\x89": lambda m: m.push(False),
        "K": lambda m: m.push(m.number(1)),
        "M": lambda m: m.push(m.number(2)),
        "J": lambda m: m.push(m.number(4, signed=True)),
        "I": lambda m: m.push(_decimal(m.line())),
        "L": lambda m: m.push(_decimal(m.line())),
        "\x8a": lambda m: m.push(_integer(m.sized(1))),
        "\x8b": lambda m: m.push(_integer(m.sized(4))),
        "F": lambda m: m.push(float(m.line())),
        "G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
        "S": lambda m: m.push(_quoted(m.line())),
        "T": lambda m: m.push(str(m.sized(4), "latin-1")),
        "U": lambda m: m.push(str(m.sized(1), "latin-1")),
        "V": lambda m: m.push(str(m.line(), "raw-unicode-escape")),
        "X": lambda m: m.push(str(m.sized(4), "utf-8", "surrogatepass")),
        "\x8c": lambda m: m.push(str(m.sized(1), "utf-8", "surrogatepass")),
        "\x8d": lambda m: m.push(str(m.sized(8), "utf-8", "surrogatepass")),
        "B": lambda m: m.push(_small(m.sized(4))),
        "C": lambda m: m.push(_small(m.sized(1))),
        "\x8e": lambda m: m.push(_small(m.sized(8))),
        "\x96": lambda m: m.push(_small(m.sized(8))),
        # containers
        "]": lambda m: m.push([]),
        "}": lambda m: m.push({}),
        ")": lambda m: m.push(()),
        "(": lambda m: m.push(_MARK),
        "l": lambda m: m.push(m.since_mark()),
        "t": lambda m: m.push(tuple(m.since_mark())),
        "d": lambda m: m.dict_of(m.since_mark()),
        "\x85": lambda m: m.tuple_of(1),
        "\x86": lambda m: m.tuple_of(2),
        "\x87": lambda m: m.tuple_of(3),
        "a": lambda m: m.extend([m.stack.pop()]),
        "e": lambda m: m.extend(m.since_mark()),
        "s": lambda m: m.update([m.stack.pop(), m.stack.pop()][::-1]),
        "u": lambda m: m.update(m.since_mark()),
        "0": lambda m: m.stack.pop(),
        "1": lambda m: m.since_mark(),
        "2": lambda m: m.push(m.stack[-1]),
        # the memo
        "p": lambda m: m.keep(int(m.line())),
        "q": lambda m: m.keep(m.number(1)),
        "r": lambda m: m.keep(m.number(4)),
        "\x94": lambda m: m.keep(len(m.memo)),
        "g": lambda m: m.push(m.memo[int(m.line())]),
        "h": lambda m: m.push(m.memo[m.number(1)]),
        "j": lambda m: m.push(m.memo[m.number(4)]),
        # what numpy's arrays are rebuilt with
        "c": lambda m: m.named(str(m.line(), "ascii"), str(m.line(), "ascii")),
        "\x93": lambda m: m.named(*[m.stack.pop(), m.stack.pop()][::-1]),
        "R": lambda m: m.reduce(),
        "b": lambda m: m.build(),
    }.items()
}
