"""Some classes of a data set: ids by the names given, objects of the others counted, mistaken names told."""

import numpy as np
import pytest

from common.errors import DataError
from dataset.class_names import choose_classes
from dataset.imdb import AnnotatedImage, Part


@pytest.fixture
def animals(tmp_path):
    def image(name, *ids):
        objects = np.array([[k, 1, 2, 3, 4 + row, row % 2] for row, k in enumerate(ids)], float).reshape(-1, 6)
        return AnnotatedImage(name, tmp_path / name, objects, (30, 40))

    return Part(("cat", "dog", "cow"), [image("a", 0, 1, 2, 1), image("b"), image("c", 0, 0)])


def test_objects_keep_their_boxes_and_get_the_ids_of_the_names_given(animals, caplog):
    chosen = choose_classes(animals, ("cow", "dog"))
    assert chosen.class_names == ("cow", "dog")
    assert [image.name for image in chosen.images] == ["a", "b", "c"]
    expected = [[1, 1, 2, 3, 5, 1], [0, 1, 2, 3, 6, 0], [1, 1, 2, 3, 7, 1]]
    np.testing.assert_array_equal(chosen.images[0].objects, expected)
    assert [image.objects.shape for image in chosen.images[1:]] == [(0, 6), (0, 6)]
    assert chosen.left_out == {"cat": 3}
    assert not caplog.text


def test_a_name_that_is_no_class_is_told(animals, caplog):
    chosen = choose_classes(animals, ("cat", "dig"))
    assert chosen.left_out == {"dog": 2, "cow": 1}
    assert "there is no class 'dig' (did you mean dog?); the annotations have cat, dog, cow" in caplog.text
    with pytest.raises(DataError, match="Cat,Dog: none of them is there, the annotations have cat, dog, cow; correct"):
        choose_classes(animals, ("Cat", "Dog"))
