"""Reads the golden data: cases, arrays, formula inputs and tolerances, all from `cases.json` alone.

The folder is tests/golden/data, or the one that GOLDEN_DIR names. A test is written per operation (`op`) and runs over
every case found; it knows neither names of cases nor shapes:

    @pytest.mark.parametrize("case", cases("ssd_encode"), ids=str)
    def test_encode(case):
        assert_close(case, "out", encode(case["matched"], case["priors"], case.args["variances"]))

A role that a case does not list is not available in it (`"loc_t" in case`). Parameters and inputs by formula come from
`case.formula_input(role)` and `formula_parameters(case)`, which verify the stored check values.
"""

import ast
import json
import operator
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

IS_OWN = not os.environ.get("GOLDEN_DIR")  # the folder of this project, to which recorded numbers belong
GOLDEN_DIR = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "data")
CHECK_RTOL = 1e-6  # of the stored first and last values and, relative to the absolute sum, of the sums


@dataclass(frozen=True)
class Case:
    """One golden case. `case[role]` gives an array (npz) or a JSON value; `role in case` tells whether it is there."""

    file: str
    name: str
    op: str
    keys: Mapping[str, Any]
    args: Mapping[str, Any]
    tolerance: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{Path(self.file).stem}-{self.name}".replace(" ", "_")

    def __contains__(self, role: str) -> bool:
        return role in self.keys

    def __getitem__(self, role: str) -> Any:
        data = _load(self.file)
        key = self.keys[role]
        if isinstance(key, list):  # a path in a .json file
            for step in key:
                data = data[step]
            return data
        value = data[key]
        return json.loads(str(value)) if value.ndim == 0 and value.dtype.kind == "U" else value

    def get(self, role: str) -> Any:
        """`case[role]`, or None where the case does not have it."""
        return None if role not in self.keys else self[role]

    def formula_input(self, role: str) -> np.ndarray:
        """The input `role` of args["formula_inputs"], regenerated and compared with its check values."""
        entry = self.args["formula_inputs"][role]
        values = random_values(entry["tag"], entry["dist"], tuple(entry["shape"])) * entry["scale"]
        values = values.astype(entry.get("dtype", "float32"))
        _verify(values, entry.get("check", {}), entry["tag"])
        return values


def cases(op: str) -> list[Case]:
    """Every case of an operation, in the order of cases.json; an empty list lets pytest skip the test."""
    return [case for case in _all_cases() if case.op == op]


def case_of(op: str, **args: Any) -> Case:
    """The first case of `op` whose args contain the given ones, for data that belong to another file's case.

    Skips the test when there is none.
    """
    found = (case for case in cases(op) if all(case.args.get(name) == value for name, value in args.items()))
    case = next(found, None)
    if case is None:
        pytest.skip(f"the golden data have no case {op} with {args}")
    return case


def random_values(tag: str, dist: str, shape: tuple[int, ...]) -> np.ndarray:
    """float64 numbers of numpy's legacy generator seeded by a name; `dist` is standard_normal or random_sample."""
    seed = (zlib.crc32(tag.encode("utf-8")) + _index()["salt"]) & 0xFFFFFFFF
    generator = np.random.RandomState(seed)
    return {
        "standard_normal": lambda: generator.standard_normal(shape),
        "random_sample": lambda: generator.random_sample(shape),
    }[dist]()


def formula_parameters(case: Case) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (torch name, float32 array) of every parameter of a `formula_params` case, checked."""
    for entry in case["params"]:
        values = _parameter(entry["name"], entry["kind"], tuple(entry["shape"]), case.args["gain"])
        _verify(values, entry, entry["name"])
        yield entry["name"], values


def assert_close(case: Case, role: str, got: Any) -> None:
    """Compares a result with the expected output `role` under the tolerance that the case states for it.

    Args:
        got: array, NDArray, number, list, or dict of these; dicts are compared key by key of the expected one, where
            null means that the original has no value.
    A mask `<role>_valid` restricts the comparison; args["<role>_accept"] holds alternatives that are equally right.
    """
    rule = case.tolerance[role]
    valid = case.get(f"{role}_valid")
    accept = case.args.get(f"{role}_accept")
    row_scale = None
    if rule != "exact" and "of_row" in rule:
        array, column = rule["row_scale"]
        row_scale = np.asarray(case[array])[:, column]
    _compare(case[role], got, rule, f"{case} {role}", valid=valid, accept=accept, row_scale=row_scale)


def assert_outputs(case: Case, got: Mapping[str, Any]) -> None:
    """assert_close for every output that the case expects; outputs that it does not have are left alone."""
    for role in case.tolerance:
        assert_close(case, role, got[role])


def largest_difference(case: Case, got: Mapping[str, Any]) -> float:
    """Of these outputs from those of the case, as a share of the largest value of each."""
    pairs = [(np.asarray(array), np.asarray(case[role])) for role, array in got.items()]
    return max(float(np.abs(found - want).max() / np.abs(want).max()) for found, want in pairs)


def assert_within(want: Any, got: Any, rule: Any, where: str = "") -> None:
    """Compares under one tolerance rule: "exact" or |got - want| <= abs + rel*|want| + of_max*max|want|."""
    _compare(want, got, rule, where)


def _compare(
    want: Any, got: Any, rule: Any, where: str, valid: Any = None, accept: Any = None, row_scale: Any = None
) -> None:
    if isinstance(want, dict):
        for key, value in want.items():
            if value is not None:
                _compare(value, got[key], rule, f"{where} {key}")
        return
    got = np.asarray(got.asnumpy() if hasattr(got, "asnumpy") else got)
    want = np.asarray(want)
    if want.dtype == object:  # null in a list, as in a dict
        want = want.astype(np.float64)
        valid = ~np.isnan(want)
    if isinstance(accept, list):
        assert any(np.array_equal(got, alternative) for alternative in [want, *accept]), f"{where}: {got}"
        return
    assert got.shape == want.shape, f"{where}: shape {got.shape} instead of {want.shape}"
    wrong = got != want if rule == "exact" else ~_within(got, want, rule, row_scale)
    if valid is not None:
        wrong &= _over_rows(valid, wrong.ndim)
    for stored, values in (accept or {}).items():
        wrong &= ~((want == float(stored)) & np.isin(got, values))
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{where}: {wrong.sum()} of {wrong.size} differ, first at {first}: {got[first]} for {want[first]} ({rule})"
        )


def _within(got: np.ndarray, want: np.ndarray, rule: Mapping[str, Any], row_scale: np.ndarray | None) -> np.ndarray:
    got, want = got.astype(np.float64), want.astype(np.float64)
    peak = np.abs(want).max(initial=0.0)
    limit = rule.get("abs", 0.0) + rule.get("rel", 0.0) * np.abs(want) + rule.get("of_max", 0.0) * peak
    if row_scale is not None:
        limit = limit + rule["of_row"] * _over_rows(np.abs(row_scale), want.ndim)
    return np.abs(got - want) <= limit


def _over_rows(values: np.ndarray, ndim: int) -> np.ndarray:
    """Appends axes so that values of the leading axes broadcast over the rest."""
    values = np.asarray(values)
    return values.reshape(values.shape + (1,) * (ndim - values.ndim))


def _parameter(name: str, kind: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
    """A parameter by the expression that cases.json gives for its kind (field formula_kinds)."""
    names = {
        "z": random_values(name, "standard_normal", shape),
        "u": random_values(name, "random_sample", shape),
        "shape": shape,
        "gain": gain,
        "sqrt": np.sqrt,
        "prod": np.prod,
    }
    values = _arithmetic(ast.parse(_index()["formula_kinds"][kind], mode="eval").body, names)
    return np.asarray(values).astype(np.float32)


_OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
}


def _arithmetic(node: ast.AST, names: Mapping[str, Any]) -> Any:
    """The value of an expression of numbers, names, + - * / **, calls of names, and slices; ValueError for others."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.BinOp(left, symbol, right) if type(symbol) in _OPERATIONS:
            return _OPERATIONS[type(symbol)](_arithmetic(left, names), _arithmetic(right, names))
        case ast.UnaryOp(symbol, operand) if type(symbol) in _OPERATIONS:
            return _OPERATIONS[type(symbol)](_arithmetic(operand, names))
        case ast.Call(ast.Name(id=name), arguments, []) if name in names:
            return names[name](*(_arithmetic(argument, names) for argument in arguments))
        case ast.Subscript(value, index):
            return _arithmetic(value, names)[_arithmetic(index, names)]
        case ast.Slice(lower, upper, None):
            return slice(*(None if end is None else _arithmetic(end, names) for end in (lower, upper)))
    raise ValueError(f"cases.json: {ast.unparse(node)} is no arithmetic of {', '.join(names)}")


def _verify(values: np.ndarray, check: Mapping[str, Any], name: str) -> None:
    flat = values.ravel().astype(np.float64)
    scale = np.abs(flat).sum()
    found = {"first": flat[: len(check.get("first", []))], "last": flat[-1], "sum": flat.sum(), "abssum": scale}
    for field in found.keys() & check.keys():
        slack = CHECK_RTOL * (scale if field.endswith("sum") else 1.0)
        np.testing.assert_allclose(found[field], check[field], rtol=CHECK_RTOL, atol=slack, err_msg=f"{name} {field}")


@cache
def _index() -> dict[str, Any]:
    return json.loads((GOLDEN_DIR / "cases.json").read_text())


@cache
def _all_cases() -> tuple[Case, ...]:
    fields = ("name", "op", "keys", "args", "tolerance")
    return tuple(
        Case(file, *(case[field] for field in fields))
        for file, entry in _index()["files"].items()
        for case in entry["cases"]
    )


@cache
def _load(file: str) -> Any:
    """A data file: dict of arrays or JSON value; the test is skipped when the folder lacks the file."""
    path = GOLDEN_DIR / file
    if not path.exists():
        pytest.skip(f"{file} is not in the golden folder")
    if path.suffix == ".json":
        return json.loads(path.read_text())
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
