"""What two sets share is found: files, copies, mirror images, shifted views, siblings and films by name."""

import os
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest

from dataset import leaks
from dataset.checking import CheckedSet
from dataset.defects import SMALL, small_grey
from dataset.leaks import find_leaks, shifts_left_out
from tools.check_dataset import main

DATA = os.environ.get("DATA_DIR", "")
needs_bccd = pytest.mark.skipif(not DATA, reason="DATA_DIR is not set")
KINDS = {
    "recompressed": lambda image: coded(image, 20),
    "resized": lambda image: coded(cv2.resize(image, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA)),
    "stretched": lambda image: coded(cv2.resize(image, (300, 300), interpolation=cv2.INTER_AREA)),
    "brighter": lambda image: coded(np.clip(image * 1.15 + 8, 0, 255).astype(np.uint8)),
    "mirrored": lambda image: coded(image[:, ::-1], 50),
}


def coded(image, quality=90):
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def scene(seed, height=240, width=320):
    """A picture of some large and small things."""
    rng = np.random.default_rng(seed)
    coarse, fine = (rng.integers(0, 256, (size, size, 3), np.uint8) for size in (9, 30))
    large, small = (cv2.resize(one, (width, height), interpolation=cv2.INTER_CUBIC) for one in (coarse, fine))
    return cv2.addWeighted(large, 0.7, small, 0.3, 0)


def checked(name, contents=None, names=None, digests=None):
    """A checked set of these encoded pictures, or of names alone."""
    count = len(contents or names or digests)
    smalls = None if contents is None else np.array([small_grey(content) for content in contents])
    numbered = [f"{name}{k}" for k in range(count)]
    return CheckedSet(name, [], numbered, names or [""] * count, digests or [""] * count, smalls)


def found(one, other):
    """(image, code) of each leak."""
    return [(defect.where.partition(" ")[0], defect.code) for defect in find_leaks([one, other])]


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_found_and_nothing_else(kind):
    pictures = [scene(seed) for seed in range(40)]
    train = checked("t", [coded(image) for image in pictures[:30]])
    val = checked("v", [KINDS[kind](image) for image in pictures[20:]])
    code = "leak-mirror" if kind == "mirrored" else "leak-picture"
    assert found(train, val) == [(f"v{k}", code) for k in range(10)]


def test_the_partner_is_named():
    train = checked("t", [coded(scene(seed)) for seed in range(5)])
    (defect,) = find_leaks([train, checked("v", [coded(scene(3), 30)])])
    assert defect.text.startswith("t3, likeness ")


def test_a_shifted_view_is_found():
    wide = scene(7, 320, 480)
    views = [coded(wide[10:250, 10:330]), coded(wide[50:290, 90:410])]
    others = [coded(scene(seed)) for seed in range(20)]
    assert found(checked("t", [*others[:10], views[0]]), checked("v", [*others[10:], views[1]])) == [
        ("v10", "leak-shifted")
    ]


def test_of_many_pictures_only_neighbours_by_name_are_shifted(monkeypatch):
    wide = scene(7, 320, 480)
    views = [coded(wide[10:250, 10:330]), coded(wide[50:290, 90:410])]
    monkeypatch.setattr(leaks, "MOST_SHIFTED", 0)
    sets = [checked("t", views[:1], ["cam_04.jpg"]), checked("v", views[1:], ["cam_06.jpg"])]
    assert found(*sets) == [("v0", "leak-shifted")]
    assert shifts_left_out(sets) == 1
    sets[1].names = ["cam_99.jpg"]
    assert found(*sets) == []


def test_plain_pictures_are_not_like_one_another():
    plain = [coded(np.full((60, 80, 3), value, np.uint8)) for value in (0, 128, 255)]
    assert found(checked("t", plain), checked("v", plain)) == []


def test_the_same_file_is_told_once():
    content = [coded(scene(1))]
    assert found(checked("t", content, None, ["aa"]), checked("v", content, None, ["aa"])) == [("v0", "leak-same")]
    assert found(checked("t", digests=["", "bb"]), checked("v", digests=["", "cc"])) == []


def test_siblings_of_roboflow_are_found_by_name():
    train = checked("t", names=["images/cat_jpg.rf.0a1b.jpg", "dog_jpg.rf.77.jpg"])
    assert found(train, checked("v", names=["x/cat_jpg.rf.99.jpg", "cow_jpg.rf.0a1b.jpg"])) == [("v0", "leak-sibling")]


def test_a_film_is_told_once():
    train = checked("train", names=[f"a/walk_{k:04}.jpg" for k in range(0, 40, 2)] + ["other_1.jpg"])
    val = checked("val", names=[f"b/walk_{k:04}.jpg" for k in range(1, 20, 2)] + ["one_2.jpg"])
    (defect,) = find_leaks([train, val])
    assert (defect.where, defect.code) == ("val", "leak-film")
    assert defect.text == "frames walk_*: 10 of them are next to one of train"
    assert find_leaks([train, checked("val", names=["walk_0900.jpg"])]) == []


def test_numbers_of_a_camera_are_no_film_where_the_pictures_differ():
    names = [f"DSC_{k:04}.jpg" for k in range(20)]
    sets = [checked(name, [coded(scene(k)) for k in range(s, 20, 2)], names[s::2]) for name, s in (("t", 0), ("v", 1))]
    assert found(*sets) == []
    for one in sets:
        one.smalls = None
    assert found(*sets) == [("v", "leak-film")]


def test_neighbours_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    theirs, ours = ([f"{'ab'[k % 2]}{k}.png" for k in rng.integers(0, 60, 30)] for _ in range(2))
    wanted = {
        (i, j)
        for i, a in enumerate(ours)
        for j, b in enumerate(theirs)
        if a[0] == b[0] and abs(int(a[1:-4]) - int(b[1:-4])) <= 3
    }
    assert set(map(tuple, leaks._neighbours(theirs, ours, 3).tolist())) == wanted


def test_likeness_is_the_correlation_of_what_both_show():
    """Against numpy, shift by shift."""
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, SMALL, SMALL)).astype(np.float32) / SMALL
    one[3:, 5:] = 0.7 * other[:-3, :-5] + 0.1 * one[3:, 5:]
    best = 0.0
    for dy in range(-SMALL + 1, SMALL):
        for dx in range(-SMALL + 1, SMALL):
            a = one[max(dy, 0) : SMALL + min(dy, 0), max(dx, 0) : SMALL + min(dx, 0)]
            b = other[max(-dy, 0) : SMALL + min(-dy, 0), max(-dx, 0) : SMALL + min(-dx, 0)]
            if a.size >= leaks.OVERLAP * SMALL**2:
                best = max(best, np.corrcoef(a.ravel(), b.ravel())[0, 1])
    likeness = leaks._views(other[None]).likeness(one, np.array([0]))
    np.testing.assert_allclose(likeness, [best], atol=2e-4)
    assert best > 0.9


@needs_bccd
def test_the_fields_that_train_and_val_of_bccd_share_are_found(capsys):
    folder = Path(DATA, "bccd")
    assert main([str(folder), "--set", "train,val", "--num-thread", "2"]) == 1
    pairs = {
        tuple(sorted(word[-9:-4] for word in line.replace(",", " ").split() if "BloodImage" in word.rstrip(":")))
        for line in capsys.readouterr().out.replace(".jpg:", ".jpg").splitlines()
        if ": leak-" in line or " leak-" in line
    }
    assert {("00037", "00038"), ("00244", "00247")} <= pairs


@needs_bccd
@pytest.mark.parametrize("kind", KINDS)
def test_planted_copies_of_bccd_are_all_found_without_a_false_alarm(kind):
    files = sorted(Path(DATA, "bccd/JPEGImages").glob("*.jpg"))[::4]
    pictures = [cv2.imread(str(file)) for file in files]
    originals = np.array([small_grey(file.read_bytes()) for file in files])
    copies = np.array([small_grey(KINDS[kind](image)) for image in pictures])
    pairs = leaks._most_like(copies, originals[:, :, ::-1] if kind == "mirrored" else originals)
    assert pairs.ours.tolist() == pairs.theirs.tolist() == list(range(len(files)))
    rest = leaks._most_like(originals[::2], originals[1::2])
    assert len(rest.ours) == 0


def test_all_sets_are_compared_with_one_another():
    sets = [checked(name, digests=["aa"]) for name in "abc"]
    expected = [(f"{other}0", f"{one}0") for one, other in combinations("abc", 2)]
    assert [(defect.where, defect.text.partition(",")[0]) for defect in find_leaks(sets)] == expected
