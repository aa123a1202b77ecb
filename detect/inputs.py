"""Which images the words of a command line mean, and where their pictures go."""

import glob
import itertools
import logging
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import DataError, OptionError
from config.command_line import is_truth
from dataset.image_check import OTHER_SUFFIXES
from engines.preprocess import SUFFIXES

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})
QUESTION = "image, video, folder or glob: "
_SKIPPED = {*OTHER_SUFFIXES, *VIDEO_SUFFIXES} - SUFFIXES
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputSource:
    """A file to read, or the number of a camera; `video` says whether it has frames."""

    origin: Path | int
    video: bool

    @property
    def path(self) -> Path:
        """The file, or a name for what a camera shows."""
        return Path(f"camera-{self.origin}.mp4") if isinstance(self.origin, int) else self.origin


def split_words(argv: Sequence[str], booleans: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """(images, flags with their values): words that are neither a flag nor a flag's value are images.

    booleans: flags that only a truth value may follow; their opposites (--no-...) take no value at all.
    """
    images: list[str] = []
    flags: list[str] = []
    waiting = ""  # the flag whose value the next word may be
    for word in argv:
        if _is_value(word, waiting, booleans):
            flags.append(word)
            waiting = ""
        elif word.startswith("-"):
            flags.append(word)
            waiting = word.replace("_", "-") if word.startswith("--") and "=" not in word else ""
        else:
            images.append(word)
            waiting = ""
    return images, flags


def _is_value(word: str, flag: str, booleans: Collection[str]) -> bool:
    if flag in booleans:
        return is_truth(word)
    return bool(flag) and flag.replace("--no-", "--", 1) not in booleans


def with_values(argv: Sequence[str], defaults: Mapping[str, str]) -> list[str]:
    """argv with the value of `defaults` ({flag: number}) after each of these flags that no number follows."""
    words: list[str] = []
    for word, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        words.append(word)
        if word in defaults and not re.fullmatch(r"\d+", following):
            words.append(defaults[word])
    return words


def find_images(words: Sequence[str], folder: str = "", extension: str = "") -> list[Path]:
    """The image and video files that words mean, each once, in their order.

    A word is a file, a folder (its images, sorted), a glob, or several of these separated by commas. `folder` is put
    before each word and `extension` after it; `folder` without words is searched itself. DataError names what does not
    exist.
    """
    parts = [part for word in words if word for part in _split_commas(word, folder, extension)]
    if not parts and folder:
        parts = [folder]
    if not parts:
        raise OptionError("no images: give files, folders or globs, for instance --images a.jpg,photos/")
    found: dict[Path, Path] = {}
    for path in (path for part in parts for path in _expand(part)):
        found.setdefault(path.resolve(), path)
    return list(found.values())


def ask_for_images(ask: Callable[[str], str], extension: str = "") -> list[Path]:
    """The files that the user's answer means, as a word of find_images; asks again where it means none.

    ask: takes the question, gives the answer, raises EOFError at the end of the input. OptionError for an empty answer.
    """
    while True:
        try:
            answer = ask(QUESTION)
        except EOFError:
            answer = ""
        try:
            return find_images([answer.strip()], extension=extension)
        except DataError as error:
            logger.error("%s", error)


def ask_beside(question: str) -> str:
    """The answer to a question that does not go to standard output."""
    print(question, end="", file=sys.stderr, flush=True)
    return input()


def plan_outputs(images: Sequence[Path], flag: str, folder: Path, videos: Collection[Path] = ()) -> list[Path]:
    """A file in `folder`, which is the value of `flag`, for each image, named as distinct_files() does.

    OptionError where one of them is an image of the input.
    """
    inputs = {path.resolve() for path in images}
    planned = distinct_files(images, folder, videos)
    for file in planned:
        if file.resolve() in inputs:
            raise OptionError(f"{flag} {folder}: {file} is an image to read; choose another folder")
    return planned


def distinct_files(images: Sequence[Path], folder: Path, videos: Collection[Path] = ()) -> list[Path]:
    """A file in `folder` for each image: its own name, with a number where that is taken by another one.

    Those in `videos` become .mp4.
    """
    taken: set[Path] = set()
    planned: list[Path] = []
    for image in images:
        suffix = image.suffix if image.suffix.lower() in SUFFIXES else f"{image.suffix}.png"
        suffix = ".mp4" if image in videos else suffix
        candidate, count = folder / f"{image.stem}{suffix}", 1
        while candidate in taken:
            count += 1
            candidate = folder / f"{image.stem}-{count}{suffix}"
        taken.add(candidate)
        planned.append(candidate)
    return planned


def is_video(path: Path) -> bool:
    """Whether a file is a video by its name."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def _split_commas(word: str, folder: str, extension: str) -> list[str]:
    """The parts of a word; a file that has commas in its name stays whole."""
    whole = str(Path(folder, word + extension))
    if Path(whole).exists():
        return [whole]
    return [str(Path(folder, part.strip() + extension)) for part in word.split(",") if part.strip()]


def _report_skipped(folder: Path, files: Sequence[Path]) -> None:
    if files:
        logger.warning(
            "%s: pictures and videos left out: %d, first %s; of a folder only %s are read: convert the others, or name "
            "videos one by one",
            folder, len(files), files[0].name, ", ".join(sorted(SUFFIXES)),
        )  # fmt: skip


def _expand(part: str) -> list[Path]:
    path = Path(part)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file())
        found = [p for p in files if p.suffix.lower() in SUFFIXES]
        if not found:
            raise DataError(f"{part}: the folder holds no images ({', '.join(sorted(SUFFIXES))})")
        _report_skipped(path, [p for p in files if p.suffix.lower() in _SKIPPED])
        return found
    if path.exists():
        return [path]
    matches = [Path(match) for match in sorted(glob.glob(part, recursive=True))]
    files = [match for match in matches if match.is_file()]
    if not files:
        raise DataError(f"{part}: no such file or folder; correct the path (or --dir and --ext)")
    return files
