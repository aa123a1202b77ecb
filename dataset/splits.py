"""Parts of a data set, drawn at random: train, val, test."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import OptionError
from dataset.imdb import AnnotatedImage, Imdb

PARTS = ("train", "val", "test")
_ROUNDING = 1e-9  # 0.81 + 0.09 < 0.9


@dataclass(frozen=True)
class Part:
    """Some images of a data set, in its order, as an Imdb."""

    class_names: tuple[str, ...]
    images: Sequence[AnnotatedImage]
    dropped: Sequence[str] = ()


def split(imdb: Imdb, shares: Sequence[float], seed: int) -> dict[str, Part]:
    """{train, val and, with three shares, test: its images}; a part of share 0 is left out.

    The images are drawn as the voc_annotation scripts do: train and val together out of all, train out of these,
    numbers rounded down, by Python's generator with this seed. So the same annotations in the same order make the same
    parts. OptionError unless there are two or three shares with the sum 1, or if a part would be empty.
    """
    if len(shares) not in (2, 3) or abs(sum(shares) - 1) > _ROUNDING:
        given = ",".join(f"{share:g}" for share in shares)
        raise OptionError(f"--split {given}: give two or three shares (train, val, test) that add up to 1")
    total, both = len(imdb.images), shares[0] + shares[1]
    generator = random.Random(seed)
    known = generator.sample(range(total), int(total * both + _ROUNDING))
    train = set(generator.sample(known, int(len(known) * shares[0] / both + _ROUNDING) if both else 0))
    rest = set(known) - train
    groups = dict(zip(PARTS, (train, rest, set(range(total)) - set(known)), strict=True))
    parts = {}
    for name, share in zip(PARTS, shares, strict=False):
        if share and not groups[name]:
            raise OptionError(f"--split: {share:g} of {total} images is none for {name}; give it a larger share")
        if share:
            images = [imdb.images[k] for k in sorted(groups[name])]
            parts[name] = Part(imdb.class_names, images, [line for image in images for line in image.dropped])
    return parts
