"""Results: rows of all images, parts of a set, and coordinates that no detour changes."""

import numpy as np

from evaluate.detections import GRID, ImageResult, Results, frames_of, label_pixels, split_rows, to_image_pixels


def image(name, truth, found):
    return ImageResult(name, (40, 60), np.array(truth, float).reshape(-1, 6), np.array(found, float).reshape(-1, 6))


def test_rows_are_numbered_by_image_and_split_again():
    parts = [
        image("a", [[0, 1, 2, 3, 4, 0]], [[1, 0.5, 1, 2, 3, 4], [0, 0.9, 5, 6, 7, 8]]),
        image("b", [], []),
        image("c", [[1, 1, 2, 3, 4, 1]], [[0, 0.1, 0, 0, 9, 9]]),
    ]
    results = Results(("x", "y"), tuple(parts))
    assert results.detections[:, 0].tolist() == [0, 0, 2]
    assert results.truths[:, 0].tolist() == [0, 2]
    for part, rows in zip(parts, split_rows(results.detections, 3), strict=True):
        np.testing.assert_array_equal(rows, part.found)
    twice = results.subset([2, 2, 1])
    assert [one.name for one in twice.images] == ["c", "c", "b"]
    assert twice.detections[:, 0].tolist() == [0, 1]
    assert Results(("x",), ()).detections.shape == Results(("x",), ()).truths.shape == (0, 7)


def test_coordinates_survive_float32_and_a_box_of_sides():
    """Whole pixels and thirds of them, through fractions in float32, an input of another size, and x + width."""
    rng = np.random.default_rng(0)
    size = (375, 500)
    corners = np.round(rng.uniform(0, 1, (200, 4)) * np.tile(size[::-1], 2) * 3) / 3
    labels = np.column_stack([np.zeros(200), corners / np.tile(size[::-1], 2), np.zeros(200)]).astype(np.float32)
    geometry = np.array([[*size, 300 / size[0], 300 / size[1], 0, 0]], np.float32).repeat(200, axis=0)
    pixels = to_image_pixels(labels[:, 1:5], frames_of(geometry, (300, 300)))
    np.testing.assert_array_equal(pixels, label_pixels(labels, size)[:, 1:5])
    np.testing.assert_allclose(pixels, corners, atol=GRID)
    whole = corners == np.round(corners)
    np.testing.assert_array_equal(pixels[whole], corners[whole])
    sides = pixels[:, 2:] - pixels[:, :2]
    np.testing.assert_array_equal(pixels[:, :2] + sides, pixels[:, 2:])
