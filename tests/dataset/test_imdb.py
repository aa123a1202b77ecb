"""Parts drawn from a data set."""

import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import OptionError
from dataset.imdb import AnnotatedImage, Part, split_dataset


def data_of(count: int) -> Part:
    images = [AnnotatedImage(f"{k}.jpg", Path(f"{k}.jpg"), np.zeros((0, 6)), None) for k in range(count)]
    return Part(("cat",), images)


def numbers(part: Part) -> list[int]:
    return [int(image.path.stem) for image in part.images]


@given(st.integers(20, 400), st.integers(0, 99), st.sampled_from([(0.9, 0.9), (0.8, 0.75), (0.5, 0.5)]))
def test_the_parts_are_those_of_voc_annotation(count, seed, percents):
    """Its two draws, in its order."""
    trainval, train = percents
    generator = random.Random(seed)
    both = generator.sample(range(count), int(count * trainval))
    first = generator.sample(both, int(len(both) * train))
    parts = split_dataset(data_of(count), (trainval * train, trainval * (1 - train), 1 - trainval), seed)
    assert numbers(parts["train"]) == sorted(first)
    assert numbers(parts["val"]) == sorted(set(both) - set(first))
    assert numbers(parts["test"]) == sorted(set(range(count)) - set(both))


@given(st.integers(2, 200), st.integers(0, 9))
def test_two_shares_make_two_parts_of_all_images(count, seed):
    parts = split_dataset(data_of(count), (0.5, 0.5), seed)
    assert list(parts) == ["train", "val"]
    assert sorted(numbers(parts["train"]) + numbers(parts["val"])) == list(range(count))
    assert numbers(split_dataset(data_of(count), (0.5, 0.5), seed)["train"]) == numbers(parts["train"])


def test_each_part_tells_of_its_own_dropped_boxes() -> None:
    images = [replace(one, dropped=(one.name,)) for one in data_of(10).images]
    parts = split_dataset(Part(("cat",), images), (0.6, 0.4), 0)
    assert {name: len(part.dropped) for name, part in parts.items()} == {"train": 6, "val": 4}
    assert all(part.dropped == [image.name for image in part.images] for part in parts.values())


def test_a_share_of_0_makes_no_part() -> None:
    assert list(split_dataset(data_of(10), (0.9, 0.0, 0.1), 0)) == ["train", "test"]


@pytest.mark.parametrize("shares", [(1.0,), (0.5, 0.4), (0.5, 0.5, 0.5), (0.25,) * 4])
def test_shares_that_are_no_split_are_refused(shares) -> None:
    with pytest.raises(OptionError, match="--split .*add up to 1"):
        split_dataset(data_of(10), shares, 0)


@pytest.mark.parametrize(("count", "shares", "name"), [(1, (0.9, 0.1), "train"), (3, (0.3, 0.1, 0.6), "train")])
def test_a_part_without_images_is_refused(count, shares, name) -> None:
    with pytest.raises(OptionError, match=f"none for {name}; give it a larger share"):
        split_dataset(data_of(count), shares, 0)


@given(st.lists(st.integers(1, 9), min_size=12, max_size=60), st.integers(0, 9))
def test_groups_stay_together(sizes, seed):
    names = [f"film{film}_{frame:04}.jpg" for film, size in enumerate(sizes) for frame in range(size)]
    data = Part(("cat",), [AnnotatedImage(name, Path(name), np.zeros((0, 6)), None) for name in names])
    parts = split_dataset(data, (0.6, 0.2, 0.2), seed, re.compile(r"(.*)_\d+"))
    films = {name: {image.name.partition("_")[0] for image in part.images} for name, part in parts.items()}
    assert sum(len(part.images) for part in parts.values()) == len(names)
    assert sum(map(len, films.values())) == len(sizes)
    for share, part in zip((0.6, 0.2, 0.2), parts.values(), strict=True):
        assert abs(len(part.images) - share * len(names)) <= max(sizes)
    assert parts == split_dataset(data, (0.6, 0.2, 0.2), seed, re.compile(r"(.*)_\d+"))


def test_a_part_without_a_group_is_refused():
    with pytest.raises(OptionError, match="in whole groups is none for val"):
        split_dataset(data_of(20), (0.8, 0.2), 0, re.compile(r"jpg"))


def test_names_without_a_group_are_drawn_alone():
    parts = split_dataset(data_of(20), (0.5, 0.5), 0, re.compile(r"^(1)\d\."))
    together = [set(range(10, 20)) <= set(numbers(part)) for part in parts.values()]
    assert sorted(together) == [False, True]
    assert [len(part.images) for part in parts.values()] == [10, 10]
