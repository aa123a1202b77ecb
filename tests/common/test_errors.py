"""Exhausted memory is told with its remedy; other errors stay."""

import pytest

from common.errors import OutOfMemoryError, out_of_memory_hint
from machine.runtime import mx


@pytest.mark.parametrize(
    "error",
    [
        mx.base.MXNetError("Traceback\n  File x.cc\ncudaMalloc failed: out of memory"),
        mx.base.MXNetError("[11:00:00] Failed to allocate CPU Memory"),
        mx.base.MXNetError("std::bad_alloc"),
        MemoryError(),
    ],
)
def test_exhausted_memory_is_one_sentence_with_the_remedy(error):
    with (
        pytest.raises(OutOfMemoryError, match=r"^the memory .*: lower --batch-size$"),
        out_of_memory_hint("lower --batch-size"),
    ):
        raise error


@pytest.mark.parametrize("error", [mx.base.MXNetError("shapes differ"), RuntimeError("odd"), ValueError("bad_alloc")])
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, out_of_memory_hint("lower --batch-size"):
        raise error
    assert caught.value is error
