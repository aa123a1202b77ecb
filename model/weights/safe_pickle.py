"""Pickles as data: a machine that knows the opcodes of plain values and a given list of names, and runs nothing else.

pickletools cuts the stream into opcodes; the machine below keeps a stack of texts, numbers, lists, tuples, dicts and
what the known names return. It never imports, never calls what a file names, and its work is bounded by the number of
opcodes.
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, cast

MAX_OPCODES = 1 << 21  # a state_dict has about 50 for each tensor
_INT64 = 1 << 63
_MARK = object()
_LONGEST_LINE = 1 << 16


class PickleRefusedError(ValueError):
    """A pickle that holds more than the machine knows; the text says what, for a sentence `it holds ...`."""


class PickleDamagedError(ValueError):
    """A pickle that is none, or is cut off."""


@dataclass(frozen=True)
class Known:
    """A name that pickles may use, and what makes a value of the arguments."""

    make: Callable[..., Any]


class Ignored:
    """A value that nobody reads, whatever its state."""


def load(file: IO[bytes], names: Mapping[str, Any], storage: Callable[[tuple[Any, ...]], Any], size: int) -> Any:
    """The value of the pickle at the position of a file of `size` bytes, which then stands behind it.

    names: {"module.name": Known, or a value}; storage makes a value of a persistent id, a tuple. Values are Python's
    own; an OrderedDict is a dict, if names say so, and loses its attributes. PickleRefusedError for any other name,
    opcode or kind of key; PickleDamagedError for what is no pickle.
    """
    machine = _Machine(names, storage)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], _Bounded(file, size)))):
            if count >= MAX_OPCODES:
                raise PickleRefusedError(f"more than {MAX_OPCODES} operations")
            machine.step(opcode.name, argument)
    except (PickleRefusedError, PickleDamagedError):
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PickleDamagedError(f"no pickle: {reason:.80}") from error
    return machine.result


class _Bounded:
    """A file that takes no memory for lengths that it cannot have."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size = file, size
        self.tell = file.tell

    def read(self, count: int) -> bytes:
        return self._file.read(min(count, self._size))

    def readline(self) -> bytes:
        return self._file.readline(_LONGEST_LINE)


class _Machine:
    """Stack and memo of one pickle."""

    def __init__(self, names: Mapping[str, Any], storage: Callable[[tuple[Any, ...]], Any]) -> None:
        self._names, self._storage = names, storage
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self.result: Any = None

    def step(self, opcode: str, argument: Any) -> None:
        """Carries out one opcode."""
        if opcode in _CONSTANTS:
            self._stack.append(_CONSTANTS[opcode]())
        elif opcode in _LITERALS:
            self._stack.append(argument)
        elif opcode in _ACTIONS:
            _ACTIONS[opcode](self, argument)
        elif opcode not in ("PROTO", "FRAME"):
            raise PickleRefusedError(f"the operation {opcode}")

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise PickleDamagedError("no pickle: a mark in place of a value")
        return value

    def _pop_to_mark(self) -> list[Any]:
        """The values above the last mark, which goes, too."""
        for position in range(len(self._stack) - 1, -1, -1):
            if self._stack[position] is _MARK:
                values = self._stack[position + 1 :]
                del self._stack[position:]
                return values
        raise PickleDamagedError("no pickle: no mark")

    def _top(self, kind: type) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise PickleRefusedError(f"values that are added to something else than a {kind.__name__}")
        return self._stack[-1]

    def stop(self, _: Any) -> None:
        self.result = self._pop()

    def mark(self, _: Any) -> None:
        self._stack.append(_MARK)

    def pop_one(self, _: Any) -> None:
        self._stack.pop()

    def tuple_of(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._stack.append(tuple(values[::-1]))

    def tuple_to_mark(self, _: Any) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def list_to_mark(self, _: Any) -> None:
        self._stack.append(self._pop_to_mark())

    def dict_to_mark(self, _: Any) -> None:
        values = self._pop_to_mark()
        self._stack.append({})
        self._set_items(values)

    def append(self, _: Any) -> None:
        value = self._pop()
        self._top(list).append(value)

    def append_to_mark(self, _: Any) -> None:
        values = self._pop_to_mark()
        self._top(list).extend(values)

    def set_item(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def set_to_mark(self, _: Any) -> None:
        self._set_items(self._pop_to_mark())

    def _set_items(self, values: list[Any]) -> None:
        target = self._top(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Tuples within tuples would take for ever to hash, and numbers can be made to share their hash.
            if not (key is None or isinstance(key, str) or (isinstance(key, int) and -_INT64 <= key < _INT64)):
                raise PickleRefusedError(f"a dict with keys of type {type(key).__name__}")
            target[key] = value

    def get(self, number: int) -> None:
        self._stack.append(self._memo[number])

    def put(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def name(self, words: str) -> None:
        """Pushes a known name; words: `module name`."""
        full = words.replace(" ", ".", 1)
        if full not in self._names:
            raise PickleRefusedError(f"{full:.80}")
        self._stack.append(self._names[full])

    def name_of_stack(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        self.name(f"{module} {name}")

    def call(self, _: Any) -> None:
        arguments, known = self._pop(), self._pop()
        if not isinstance(known, Known) or not isinstance(arguments, tuple):
            raise PickleRefusedError("a call of something that is no name")
        self._stack.append(known.make(*arguments))

    def build(self, _: Any) -> None:
        """Drops the state of a dict (an OrderedDict's attributes) or of a value that is ignored."""
        self._pop()
        if not isinstance(self._stack[-1], dict | Ignored):
            raise PickleRefusedError(f"a state for a {type(self._stack[-1]).__name__}")

    def persistent(self, _: Any) -> None:
        identity = self._pop()
        if not isinstance(identity, tuple):
            raise PickleRefusedError("a persistent id that is no tuple")
        self._stack.append(self._storage(identity))


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}
_LITERALS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    )
)
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "STOP": _Machine.stop,
    "MARK": _Machine.mark,
    "POP": _Machine.pop_one,
    "TUPLE": _Machine.tuple_to_mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "LIST": _Machine.list_to_mark,
    "DICT": _Machine.dict_to_mark,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.append_to_mark,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_to_mark,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_of_stack,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
