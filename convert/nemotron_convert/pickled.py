"""Reading the pickles that PyTorch writes around tensors, without running anything in them.

Every global that a pickle may name is on a list, and becomes a `Record`: a class of ours that only
remembers what it was given. Python's own unpickler in Python is used, not the C one, because that
one reserves memory for whatever index a pickle claims.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Collection
from typing import Any

from nemotron_convert.errors import NemotronError


class Record:
    """An instance of some allowed class: what it was called with, set as items, given as state.

    A state that is a dict becomes attributes; any other is kept as `state`.
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
    """The object in `data`, with a Record for each instance of an `allowed` (module, name).

    An object by reference (a persistent id, as tensors' storages are) comes as the id itself.
    NemotronError names a global that is not allowed.
    """
    try:
        return _Unpickler(data, allowed, where).load()
    except NemotronError:
        raise
    except RecursionError as error:
        raise NemotronError("the pickle is nested too deeply", where=where) from error
    except Exception as error:  # a pickle is a program: a wrong one can fail in any way
        raise NemotronError(f"not a whole pickle: {error!r}"[:200], where=where) from error


class _Unpickler(pickle._Unpickler):
    def __init__(self, data: bytes, allowed: Collection[tuple[str, str]], where: str) -> None:
        super().__init__(io.BytesIO(data))
        self._allowed = allowed
        self._where = where
        # Made anew for each pickle: it can write attributes of what it is given.
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
