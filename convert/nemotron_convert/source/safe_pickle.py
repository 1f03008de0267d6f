"""A reader of the pickles that PyTorch writes around tensors, which runs nothing in them.

A pickle may name only the globals on a list, and each becomes a `Record`: a class of ours that only
stores what it is given. Python's unpickler in Python is used, not the one in C, because the latter
reserves memory for any memo index that a pickle claims.

The result is still under the control of whoever wrote the pickle. A few bytes can nest tuples so
that printing, comparing or hashing them takes forever. Check the type of every value before use.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Collection
from typing import Any

from nemotron_core.errors import NemotronError


class Record:
    """An instance of an allowed class: its constructor's arguments, its items and its state.

    A state that is a dict becomes attributes. Any other state is stored in `state`.
    """

    args: tuple[Any, ...]
    entries: dict[Any, Any]
    state: Any

    def __new__(cls, *args: Any) -> Record:
        record = super().__new__(cls)
        record.__dict__["args"] = args
        record.__dict__["entries"] = {}
        return record

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update({str(key): value for key, value in state.items()})
        else:
            self.__dict__["state"] = state


def load_pickle(data: bytes, allowed: Collection[tuple[str, str]], *, where: str) -> Any:
    """Return the object in `data`, with a `Record` for each instance of an `allowed` class.

    `allowed` holds pairs (module, name). A persistent id, by which torch refers to a tensor's
    storage, is returned as it is. Raises `NemotronError` if the pickle is damaged, or names a
    global that is not allowed; the message contains that name.
    """
    try:
        return _Unpickler(data, allowed, where).load()
    except NemotronError:
        raise
    except RecursionError as error:
        raise NemotronError("the pickle is nested too deeply", where=where) from error
    except Exception as error:  # a pickle is a program, and a damaged one can fail in any way
        raise NemotronError(f"not a whole pickle: {error!r}"[:200], where=where) from error


def _checked(opcode: int, keys: slice) -> Callable[[Any], None]:
    """Return the function for `opcode`, which first checks the stack items that become keys."""
    load: Callable[[Any], None] = pickle._Unpickler.dispatch[opcode]

    def load_checked(unpickler: Any) -> None:
        for key in unpickler.stack[keys]:
            if not isinstance(key, str | int | Record):  # hashing a nested tuple can take forever
                raise TypeError(f"a key that is a {type(key).__name__}")
        load(unpickler)

    return load_checked


class _Unpickler(pickle._Unpickler):
    dispatch = pickle._Unpickler.dispatch.copy()
    for opcode in (
        *(pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET),  # they hash their items
        *(pickle.INT, pickle.LONG),  # numbers as text take quadratic time on old Pythons
    ):
        del dispatch[opcode[0]]
    dispatch[pickle.SETITEM[0]] = _checked(pickle.SETITEM[0], slice(-2, -1))
    dispatch[pickle.SETITEMS[0]] = _checked(pickle.SETITEMS[0], slice(0, None, 2))  # since the mark
    dispatch[pickle.DICT[0]] = _checked(pickle.DICT[0], slice(0, None, 2))

    def __init__(self, data: bytes, allowed: Collection[tuple[str, str]], where: str) -> None:
        super().__init__(io.BytesIO(data))
        self._allowed = allowed
        self._where = where
        # Created for each pickle, because a pickle can set attributes of a class.
        self._classes: dict[tuple[str, str], type[Record]] = {}

    def find_class(self, module: str, name: str) -> type[Record]:
        key = (module, name)
        if key not in self._allowed:
            raise NemotronError(
                f"the pickle asks for {module}.{name}"[:200],
                where=self._where,
                remedy="such a file can run programs; it was not read further",
            )
        if key not in self._classes:
            self._classes[key] = type(name, (Record,), {"__module__": module})
        return self._classes[key]

    def persistent_load(self, pid: Any) -> Any:
        return pid
