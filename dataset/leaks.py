"""What two sets share, so that the one does not test what is learnt from the other: files, pictures, places, films.

Pictures are compared by small grey copies (defects.small_grey). Products of matrices find the like ones among all
pairs; a correlation of the whole copies confirms them. A place that is shown a little shifted is found by normalised
cross-correlation over the part that both copies show (Padfield 2012, Masked object registration in the Fourier domain).
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import PurePosixPath

import numpy as np

from dataset.checking import CheckedSet
from dataset.defects import SMALL, Defect

LIKE = 0.75  # correlation of a quarter of the values that makes a pair worth a closer look
SAME = 0.85  # correlation of the grey copies of one picture in two qualities or sizes; others reach 0.62
SHIFTED = 0.8  # of two views of one place; those of BCCD have 0.84 and more, two pictures with black bars 0.79
OVERLAP = 0.45  # share of a copy that a shifted one must show, too
MOST_SHIFTED = 1_000_000  # pairs whose shifts are tried: 40 us each
NEAR = 8  # numbers by which the frames of a film may differ to be neighbours
FRAMES = 5  # a film has at least so many frames
_PAIRS = 1 << 22  # correlations that are made at a time
_CLOSER = 1 << 12  # pairs of whole copies that are compared at a time
_VIEWS = 256  # pictures whose spectra are held at a time
_TRIED = 100  # pairs of neighbours by which a film is judged
_NUMBERED = re.compile(r"(.*?)(\d+)\D*")
_ROBOFLOW = ".rf."
_LEAST_VARIANCE = 0.2  # of a copy's whole, in the part that both show: a plain part tells nothing


@dataclass(frozen=True)
class Pairs:
    """Some images of one set (n,) and for each the one of another that is most like it, with their likeness."""

    ours: np.ndarray
    theirs: np.ndarray
    likeness: np.ndarray


def find_leaks(sets: Sequence[CheckedSet]) -> list[Defect]:
    """A defect for each image of a later set that an earlier one has, too, the strongest reason alone, and for films.

    Pictures are compared where both sets have grey copies, digests and names where they are known.
    """
    defects = []
    for one, other in combinations(sets, 2):
        told: set[int] = set()
        for code, pairs, says in _reasons(one, other, told):
            for ours, theirs, likeness in zip(pairs.ours, pairs.theirs, pairs.likeness, strict=True):
                told.add(int(ours))
                text = f"{shown_image(one, int(theirs))}, {says.format(likeness)}"
                defects.append(Defect(shown_image(other, int(ours)), code, text))
        defects += _films(one, other)
    return defects


def shifts_left_out(sets: Sequence[CheckedSet]) -> int:
    """Pairs of pictures too many to try all their shifts; of these only the neighbours by name are tried."""
    pairs = [len(one.images) * len(other.images) for one, other in combinations(sets, 2) if _has_pictures(one, other)]
    return sum(count for count in pairs if count > MOST_SHIFTED)


def _reasons(one: CheckedSet, other: CheckedSet, told: set[int]) -> Iterator[tuple[str, Pairs, str]]:
    """(code, pairs, what they are, with a place for the likeness) from the strongest reason to the weakest.

    told: images of `other` that need no more; filled between two reasons.
    """
    yield "leak-same", _equal(one.digests, other.digests), "the same bytes"
    names = [_siblings(checked.names) for checked in (one, other)]
    yield "leak-sibling", _without(_equal(*names), told), "the same name before .rf."
    if not _has_pictures(one, other):
        return
    ours, theirs = _rows(other), _rows(one)
    yield "leak-picture", _without(_most_like(ours, theirs), told), "likeness {:.2f}"
    mirrored = theirs[:, :, ::-1]
    yield "leak-mirror", _without(_most_like(ours, mirrored), told), "likeness of its mirror image {:.2f}"
    places = _without(_shifted(ours, theirs, _pairs_to_shift(one, other, told)), told)
    yield "leak-shifted", places, "likeness of what both show {:.2f}"


def _has_pictures(one: CheckedSet, other: CheckedSet) -> bool:
    return one.smalls is not None and other.smalls is not None and bool(len(one.smalls) and len(other.smalls))


def _rows(checked: CheckedSet) -> np.ndarray:
    """The grey copies (n, SMALL, SMALL) float16: float32 of a large set would take much memory."""
    assert checked.smalls is not None
    return checked.smalls


def shown_image(checked: CheckedSet, number: int) -> str:
    """An image for a message: with its name, where a record has it from its list."""
    image, name = checked.images[number], checked.names[number]
    return f"{image} ({name})" if name and checked.source is None else image


def _without(pairs: Pairs, told: set[int]) -> Pairs:
    kept = ~np.isin(pairs.ours, list(told)) if told else np.ones(len(pairs.ours), bool)
    return Pairs(pairs.ours[kept], pairs.theirs[kept], pairs.likeness[kept])


def _equal(theirs: Sequence[str], ours: Sequence[str]) -> Pairs:
    """Pairs of equal texts; an empty one equals none."""
    first = {text: k for k, text in reversed(list(enumerate(theirs))) if text}
    found = np.array([(k, first[text]) for k, text in enumerate(ours) if text in first], np.int64).reshape(-1, 2)
    return Pairs(found[:, 0], found[:, 1], np.ones(len(found)))


def _siblings(names: Sequence[str]) -> list[str]:
    """What Roboflow's names of the variants of an image have in common; "" for other names."""
    stems = [PurePosixPath(name).name for name in names]
    return [stem.rpartition(_ROBOFLOW)[0] if _ROBOFLOW in stem else "" for stem in stems]


def _most_like(ours: np.ndarray, theirs: np.ndarray) -> Pairs:
    """Of each of ours (n, SMALL, SMALL) the most like of theirs (m, SMALL, SMALL), where their correlation is SAME."""
    coarse_ours, coarse_theirs = _coarse(ours), _coarse(theirs).T
    flat_ours, flat_theirs = ours.reshape(len(ours), -1), theirs.reshape(len(theirs), -1)
    best, partners = np.zeros(len(ours)), np.zeros(len(ours), np.int64)
    step = max(1, _PAIRS // len(theirs))
    for begin in range(0, len(ours), step):
        a, b = np.nonzero(coarse_ours[begin : begin + step] @ coarse_theirs > LIKE)
        for part in range(0, len(a), _CLOSER):
            rows, columns = a[part : part + _CLOSER] + begin, b[part : part + _CLOSER]
            values = (flat_ours[rows].astype(np.float32) * flat_theirs[columns]).sum(axis=1)
            _keep_best(best, partners, rows, columns, values)
    found = np.flatnonzero(best > SAME)
    return Pairs(found, partners[found], best[found])


def _keep_best(
    best: np.ndarray, partners: np.ndarray, rows: np.ndarray, columns: np.ndarray, values: np.ndarray
) -> None:
    """Notes in best (n,) and partners (n,) the largest value of each row, where it is larger than what is there."""
    order = np.argsort(values, kind="stable")
    rows, columns, values = rows[order], columns[order], values[order]
    last = len(rows) - 1 - np.unique(rows[::-1], return_index=True)[1]  # of each row, its largest value
    last = last[values[last] > best[rows[last]]]
    best[rows[last]], partners[rows[last]] = values[last], columns[last]


def _coarse(smalls: np.ndarray) -> np.ndarray:
    """(n, SMALL * SMALL / 4) of length 1: the copies at half of their size."""
    half = SMALL // 2
    means = (
        smalls.reshape(-1, half, 2, half, 2).mean(axis=(2, 4), dtype=np.float32).reshape(len(smalls), -1)
    )  # (n, half * half)
    return means / np.maximum(np.sqrt((means**2).sum(axis=1, keepdims=True)), np.finfo(np.float32).tiny)


def _pairs_to_shift(one: CheckedSet, other: CheckedSet, told: set[int]) -> np.ndarray:
    """(k, 2) numbers of images of `other` and of `one` whose shifts are tried: all, or the neighbours by name."""
    rest = np.setdiff1d(np.arange(len(other.images)), list(told))
    if len(one.images) * len(other.images) <= MOST_SHIFTED:
        grid = np.meshgrid(rest, np.arange(len(one.images)), indexing="ij")
        return np.stack(grid, axis=-1).reshape(-1, 2)  # (k, 2)
    pairs = _neighbours(one.names, other.names)
    return pairs[np.isin(pairs[:, 0], rest)]


def _shifted(ours: np.ndarray, theirs: np.ndarray, pairs: np.ndarray) -> Pairs:
    """Of each of ours the one of theirs that shows the same place, among these pairs (k, 2)."""
    best, partners = np.zeros(len(ours)), np.zeros(len(ours), np.int64)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0], pairs[:, 1] // _VIEWS))]
    for block in np.unique(pairs[:, 1] // _VIEWS):
        begin, some = block * _VIEWS, pairs[pairs[:, 1] // _VIEWS == block]
        views = _views(theirs[begin : begin + _VIEWS])
        rows, starts = np.unique(some[:, 0], return_index=True)
        for row, columns in zip(rows, np.split(some[:, 1], starts[1:]), strict=True):
            likeness = views.likeness(ours[row], columns - begin)
            if likeness.max() > best[row]:
                best[row], partners[row] = likeness.max(), columns[likeness.argmax()]
    found = np.flatnonzero(best > SHIFTED)
    return Pairs(found, partners[found], best[found])


@dataclass(frozen=True)
class _Views:
    """Pictures (n, SMALL, SMALL) made ready for correlations over all shifts, an axis of 2 SMALL each: spectrum; sums
    and spread (sum of squared differences from the mean) of what a picture shows of them at each shift."""

    spectrum: np.ndarray
    sums: np.ndarray
    spread: np.ndarray

    def likeness(self, image: np.ndarray, places: np.ndarray) -> np.ndarray:
        """(k,) the largest correlation of an image (SMALL, SMALL) with the pictures at these places (k,) over shifts,
        of the part that both show; that part is OVERLAP of them at least, and not plain."""
        image = image.astype(np.float32)
        mask, here = _mask(), _spectrum(image[None])
        count, sums = _covered(mask), _inverse(here * mask.conj())
        spread = _inverse(_spectrum(image[None] ** 2) * mask.conj()) - sums**2 / count
        common = _inverse(here * self.spectrum[places].conj()) - sums * self.sums[places] / count
        spread_there = self.spread[places]
        usable = (count >= OVERLAP * SMALL**2) & (np.minimum(spread, spread_there) > _LEAST_VARIANCE)
        values = np.where(usable, common / np.sqrt(np.maximum(spread * spread_there, _LEAST_VARIANCE**2)), 0)
        return values.reshape(len(places), -1).max(axis=1)


def _views(smalls: np.ndarray) -> _Views:
    mask = _mask()
    smalls = smalls.astype(np.float32)
    spectrum, squares = _spectrum(smalls), _spectrum(smalls**2)
    sums, total = _inverse(mask * spectrum.conj()), _inverse(mask * squares.conj())
    return _Views(spectrum, sums, total - sums**2 / _covered(mask))


def _mask() -> np.ndarray:
    """The spectrum of a picture of ones."""
    return _spectrum(np.ones((1, SMALL, SMALL), np.float32))


def _covered(mask: np.ndarray) -> np.ndarray:
    """(1, 2 SMALL, 2 SMALL) how many values two pictures share at each shift, 1 at least."""
    return np.maximum(_inverse(mask * mask.conj()), 1.0)


def _spectrum(images: np.ndarray) -> np.ndarray:
    """The transforms of images (n, SMALL, SMALL) with zeros around, so that shifts do not wrap."""
    return np.fft.rfft2(images, (2 * SMALL, 2 * SMALL)).astype(np.complex64)


def _inverse(spectra: np.ndarray) -> np.ndarray:
    return np.fft.irfft2(spectra, (2 * SMALL, 2 * SMALL)).astype(np.float32)


def _numbers(names: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
    """{text before the last number of a name: (that number, place of the name), sorted}; names with a number alone."""
    films = defaultdict(list)
    for place, name in enumerate(names):
        found = _NUMBERED.fullmatch(PurePosixPath(name).stem.partition(_ROBOFLOW)[0]) if name else None
        if found and len(found[2]) < 19:
            films[found[1]].append((int(found[2]), place))
    return {film: sorted(frames) for film, frames in films.items()}


def _neighbours(theirs: Sequence[str], ours: Sequence[str], distance: int = NEAR) -> np.ndarray:
    """(k, 2) places of names of `ours` and of `theirs` of one film whose numbers differ by `distance` at most."""
    films, found = _numbers(theirs), [np.zeros((0, 2), np.int64)]
    for film, frames in _numbers(ours).items():
        if film not in films:
            continue
        mine, other = np.array(frames), np.array(films[film])
        begin = np.searchsorted(other[:, 0], mine[:, 0] - distance)
        counts = np.searchsorted(other[:, 0], mine[:, 0] + distance, side="right") - begin
        rows = np.repeat(np.arange(len(mine)), counts)
        columns = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + np.repeat(begin, counts)
        found.append(np.column_stack([mine[rows, 1], other[columns, 1]]))
    return np.concatenate(found)


def _films(one: CheckedSet, other: CheckedSet) -> list[Defect]:
    """A defect for each film of which both sets have neighbouring frames, by name.

    Where the pictures are known, half of the neighbours must show one place: numbers alone may be those of a camera.
    """
    pairs = _neighbours(one.names, other.names, 1)
    theirs, ours = _numbers(one.names), _numbers(other.names)
    films = {place: film for film, frames in ours.items() for _, place in frames}
    some: dict[str, list[list[int]]] = defaultdict(list)
    for pair in pairs.tolist():
        some[films[pair[0]]].append(pair)
    defects = []
    for film, neighbours in some.items():
        if len(ours[film]) + len(theirs[film]) < FRAMES:
            continue
        if _has_pictures(one, other) and not _show_one_place(one, other, np.array(neighbours)):
            continue
        text = f"frames {film}*: {len({ours for ours, _ in neighbours})} of them are next to one of {one.name}"
        defects.append(Defect(other.name, "leak-film", text))
    return defects


def _show_one_place(one: CheckedSet, other: CheckedSet, pairs: np.ndarray) -> bool:
    """Whether half of some neighbours (k, 2) show the same place."""
    pairs = pairs[np.linspace(0, len(pairs) - 1, min(len(pairs), _TRIED)).astype(int)]
    here, views = _rows(other)[pairs[:, 0]], _views(_rows(one)[pairs[:, 1]])
    return float(np.median([views.likeness(image, np.array([k]))[0] for k, image in enumerate(here)])) > SHIFTED
