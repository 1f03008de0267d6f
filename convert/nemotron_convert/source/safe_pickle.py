"""A reader of the pickles that PyTorch writes around tensors, which runs nothing in them.

A pickle is a program for a small stack machine. Only the instructions that such pickles consist of
are carried out, and a pickle may name only the classes and functions on a list, each of which
becomes a `Record`: a class of ours that only stores what it is given. Python's unpickler is not
used: that in C reserves memory for any memo index that a pickle claims and hashes any key at all,
and that in Python takes minutes for an index of 200 MB.

The result is still under the control of whoever wrote the pickle. A few bytes can nest tuples so
that printing, comparing or hashing them takes forever. Check the type of every value before use.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from typing import Any

from nemotron_core.errors import NemotronError

LONG_LIMIT = 16
"""Largest size in bytes of an integer."""


class Record:
    """An instance of an allowed class: its constructor's arguments, its items and its state.

    If the state is a dict, its items are attributes.
    """

    __slots__ = ("args", "entries", "state")
    args: tuple[Any, ...]
    entries: dict[Any, Any]
    state: Any

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args = args

    def __getattr__(self, name: str) -> Any:
        """Return an item of the state. Called for names that are not set in the slots."""
        if name == "entries":
            self.entries = {}
            return self.entries
        if name != "state" and isinstance(state := self.state, dict) and name in state:
            return state[name]
        raise AttributeError(name)


def load_pickle(data: bytes, allowed: Collection[tuple[str, str]], *, where: str) -> Any:
    """Return the object in `data`, with a `Record` for each instance of an `allowed` class.

    `allowed` holds pairs (module, name). A persistent id, by which torch refers to a tensor's
    storage, is returned as it is. Takes time and memory in proportion to the pickle's size. Raises
    `NemotronError` if the pickle is damaged, or names a global that is not allowed; the message
    contains that name.
    """
    machine = _Machine(data, allowed, where)
    try:
        return machine.run()
    except NemotronError:
        raise
    except Exception as error:  # a pickle is a program, and a damaged one can fail in any way
        raise NemotronError(f"not a whole pickle: {error!r}"[:200], where=where) from error


class _Machine:
    """The state of the stack machine, and one method for each group of rare instructions."""

    def __init__(self, data: bytes, allowed: Collection[tuple[str, str]], where: str) -> None:
        self._data = data
        self._at = 0
        self._allowed = allowed
        self._where = where
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        """The stacks below each mark."""
        self._memo: list[Any] = []
        self._sparse_memo: dict[int, Any] = {}
        """Memo entries that do not follow the one before."""
        # Created for each pickle, so that no pickle can prepare anything for the next one.
        self._classes: dict[tuple[str, str], type[Record]] = {}

    def run(self) -> Any:
        """Carry out all instructions and return the result. The frequent ones come first."""
        data, memo, sparse_memo = self._data, self._memo, self._sparse_memo
        at = 0
        stack = self._stack
        while True:
            op = data[at]
            at += 1
            if op == 0x94:  # MEMOIZE
                if sparse_memo:
                    self._put(len(memo) + len(sparse_memo), stack[-1])
                else:
                    memo.append(stack[-1])
            elif op == 0x68:  # BINGET
                stack.append(self._get(data[at]) if sparse_memo else memo[data[at]])
                at += 1
            elif op == 0x4B:  # BININT1
                stack.append(data[at])
                at += 1
            elif op == 0x6A:  # LONG_BINGET
                stack.append(self._get(int.from_bytes(self._slice(at, 4), "little")))
                at += 4
            elif op == 0x4D:  # BININT2
                stack.append(int.from_bytes(self._slice(at, 2), "little"))
                at += 2
            elif op == 0x4A:  # BININT
                stack.append(int.from_bytes(self._slice(at, 4), "little", signed=True))
                at += 4
            elif op == 0x8C:  # SHORT_BINUNICODE
                stack.append(self._slice(at + 1, data[at]).decode("utf-8", "surrogatepass"))
                at += 1 + data[at]
            elif op == 0x85:  # TUPLE1
                stack[-1:] = [(stack[-1],)]
            elif op == 0x86:  # TUPLE2
                stack[-2:] = [(stack[-2], stack[-1])]
            elif op in (0x52, 0x81):  # REDUCE, NEWOBJ
                args = stack.pop()
                stack[-1] = _new(stack[-1], args)
            elif op == 0x28:  # MARK
                self._marked.append(stack)
                stack = []
            elif op == 0x75:  # SETITEMS
                items = stack
                stack = self._marked.pop()
                _set_items(stack[-1], items)
            elif op == 0x62:  # BUILD
                state = stack.pop()
                _build(stack[-1], state)
            elif op == 0x7D:  # EMPTY_DICT
                stack.append({})
            elif op == 0x71:  # BINPUT
                self._put(data[at], stack[-1])
                at += 1
            elif op == 0x72:  # LONG_BINPUT
                self._put(int.from_bytes(self._slice(at, 4), "little"), stack[-1])
                at += 4
            elif op == 0x2E:  # STOP
                return stack.pop()
            elif op in (0x74, 0x6C, 0x64, 0x65):  # TUPLE, LIST, DICT, APPENDS
                items = stack
                stack = self._marked.pop()
                _collect(op, stack, items)
            else:
                self._stack, self._at = stack, at
                handler = _RARE.get(op)
                if handler is None:
                    raise ValueError(f"instruction {op:#x}")
                handler(self)
                at = self._at

    def _slice(self, at: int, size: int) -> bytes:
        part = self._data[at : at + size]
        if len(part) != size:
            raise EOFError("it ends early")
        return part

    def _read(self, size: int) -> bytes:
        part = self._slice(self._at, size)
        self._at += size
        return part

    def _line(self) -> str:
        end = self._data.index(b"\n", self._at)
        line = self._data[self._at : end].decode()
        self._at = end + 1
        return line

    def _get(self, index: int) -> Any:
        if index in self._sparse_memo:
            return self._sparse_memo[index]
        return self._memo[index]

    def _put(self, index: int, value: Any) -> None:
        if index == len(self._memo) and not self._sparse_memo:
            self._memo.append(value)
        elif index < len(self._memo):
            self._memo[index] = value
        else:
            self._sparse_memo[index] = value

    def _find_class(self, module: object, name: object) -> type[Record]:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("the name of a class is no text")
        key = (module, name)
        if key not in self._allowed:
            raise NemotronError(
                f"the pickle asks for {module}.{name}"[:200],
                where=self._where,
                remedy="such a file can run programs; it was not read further",
            )
        if key not in self._classes:
            self._classes[key] = type(name, (Record,), {"__slots__": (), "__module__": module})
        return self._classes[key]

    def _global(self) -> None:
        module = self._line()
        self._stack.append(self._find_class(module, self._line()))

    def _stack_global(self) -> None:
        name = self._stack.pop()
        self._stack.append(self._find_class(self._stack.pop(), name))

    def _sized(self, size_bytes: int, make: Callable[[bytes], Any]) -> None:
        """Push what `make` makes of bytes whose number stands in front of them."""
        size = int.from_bytes(self._read(size_bytes), "little")
        self._stack.append(make(self._read(size)))

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _append(self) -> None:
        item = self._stack.pop()
        _collect(0x65, self._stack, [item])

    def _set_item(self) -> None:
        value = self._stack.pop()
        key = self._stack.pop()
        _set_items(self._stack[-1], [key, value])

    def _tuple3(self) -> None:
        self._stack[-3:] = [tuple(self._stack[-3:])]


def _text(part: bytes) -> str:
    return part.decode("utf-8", "surrogatepass")


def _integer(part: bytes) -> int:
    if len(part) > LONG_LIMIT:
        raise ValueError(f"an integer of {len(part)} bytes")
    return int.from_bytes(part, "little", signed=True)


def _new(kind: object, args: object) -> Record:
    if not (isinstance(kind, type) and issubclass(kind, Record) and isinstance(args, tuple)):
        raise TypeError("what is called is no class")
    return kind(args)


def _build(record: object, state: object) -> None:
    if not isinstance(record, Record):
        raise TypeError(f"a state for a {type(record).__name__}")
    record.state = state


def _set_items(target: object, items: list[Any]) -> None:
    """Set the keys and values that alternate in `items`."""
    if len(items) % 2:
        raise ValueError("a key without a value")
    entries = target.entries if isinstance(target, Record) else target
    if not isinstance(entries, dict):
        raise TypeError(f"items for a {type(target).__name__}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int | Record):  # hashing a nested tuple can take forever
            raise TypeError(f"a key that is a {type(key).__name__}")
        entries[key] = value


def _collect(op: int, stack: list[Any], items: list[Any]) -> None:
    """Make a tuple, a list or a dict of the items above a mark, or append them to a list."""
    if op == 0x74:
        stack.append(tuple(items))
    elif op == 0x6C:
        stack.append(items)
    elif op == 0x64:
        stack.append({})
        _set_items(stack[-1], items)
    elif isinstance(stack[-1], list):
        stack[-1] += items
    else:
        raise TypeError(f"items for a {type(stack[-1]).__name__}")


_RARE: dict[int, Callable[[_Machine], object]] = {
    0x80: lambda machine: machine._read(1),  # PROTO
    0x95: lambda machine: machine._read(8),  # FRAME
    0x63: _Machine._global,  # GLOBAL
    0x93: _Machine._stack_global,  # STACK_GLOBAL
    0x4E: lambda machine: machine._push(None),  # NONE
    0x88: lambda machine: machine._push(True),  # NEWTRUE
    0x89: lambda machine: machine._push(False),  # NEWFALSE
    0x29: lambda machine: machine._push(()),  # EMPTY_TUPLE
    0x5D: lambda machine: machine._push([]),  # EMPTY_LIST
    0x87: _Machine._tuple3,  # TUPLE3
    0x61: _Machine._append,  # APPEND
    0x73: _Machine._set_item,  # SETITEM
    0x51: lambda machine: None,  # BINPERSID: the id itself stands for what it names
    0x8A: lambda machine: machine._sized(1, _integer),  # LONG1
    0x8B: lambda machine: machine._sized(4, _integer),  # LONG4
    0x58: lambda machine: machine._sized(4, _text),  # BINUNICODE
    0x8D: lambda machine: machine._sized(8, _text),  # BINUNICODE8
    0x43: lambda machine: machine._sized(1, bytes),  # SHORT_BINBYTES
    0x42: lambda machine: machine._sized(4, bytes),  # BINBYTES
    0x8E: lambda machine: machine._sized(8, bytes),  # BINBYTES8
    0x47: lambda machine: machine._push(struct.unpack(">d", machine._read(8))[0]),  # BINFLOAT
}
"""Instructions that are carried out by a method. Those that are missing are refused."""
