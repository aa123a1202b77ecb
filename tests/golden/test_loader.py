"""The golden loader itself: every case is readable and formula values reproduce."""

import numpy as np
import pytest

from tests.golden import loader
from tests.golden.loader import Case, assert_within, cases, formula_parameters


@pytest.mark.parametrize("case", loader._all_cases(), ids=str)
def test_every_role_can_be_loaded(case: Case) -> None:
    for role in case.keys:
        case[role]
    assert set(case.tolerance) <= set(case.keys)


@pytest.mark.parametrize("case", [c for c in loader._all_cases() if c.args.get("formula_inputs")], ids=str)
def test_formula_inputs_have_their_check_values(case: Case) -> None:
    for role, entry in case.args["formula_inputs"].items():
        assert case.formula_input(role).shape == tuple(entry["shape"])


@pytest.mark.parametrize("case", cases("formula_params"), ids=str)
def test_formula_parameters_have_their_check_values(case: Case) -> None:
    parameters = dict(formula_parameters(case))
    assert len(parameters) == case["n_entries"]
    assert all(np.isfinite(values).all() for values in parameters.values())


def test_tolerances_are_those_of_the_rule() -> None:
    want = np.array([0.0, 100.0])
    assert_within(want, want + [0.8, 1.8], {"abs": 0.9, "rel": 0.01})
    assert_within(want, want + [0.9, 0.9], {"of_max": 0.01})
    assert_within({"ap": None, "npos": 3}, {"npos": 3}, "exact")
    assert_within([None, 3.0], [7.0, 3.0], "exact")
    with pytest.raises(AssertionError, match="1 of 2 differ"):
        assert_within(want, want + [1.1, 0.0], {"of_max": 0.01})
    with pytest.raises(AssertionError, match="shape"):
        assert_within(want, want[:1], "exact")


def test_nan_is_never_close() -> None:
    with pytest.raises(AssertionError, match="1 of 2 differ"):
        assert_within([1.0, 2.0], [1.0, np.nan], {"abs": 10.0})


def test_alternatives_and_masks_count_as_right(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"a": np.array([1, 2, 3]), "mask": np.array([True, True, False])}
    monkeypatch.setattr(loader, "_load", lambda file: data)
    case = Case("x.npz", "x", "x", {"a": "a", "a_valid": "mask"}, {"a_accept": {"2": [2, 7]}}, {"a": "exact"})
    loader.assert_close(case, "a", [1, 7, 99])
    with pytest.raises(AssertionError, match="differ"):
        loader.assert_close(case, "a", [1, 8, 3])
