"""Exhausted memory is told with its remedy; other errors stay. Wrong words get suggestions."""

import pytest

from common.errors import OutOfMemoryError, did_you_mean, out_of_memory_hint
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


def test_suggestions_are_the_words_most_alike():
    known = ["resnet50", "resnet101", "vgg16"]
    assert did_you_mean("resnet5", known) == " (did you mean resnet50?)"
    assert did_you_mean("resnet10", known, most=3) == " (did you mean resnet101 or resnet50?)"
    assert did_you_mean("", known) == did_you_mean("zzz", known) == ""
