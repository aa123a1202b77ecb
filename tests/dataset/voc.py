"""A small VOC folder for the tests of reading and packing."""

from pathlib import Path

import cv2
import numpy as np


def jpeg(width: int = 40, height: int = 30, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 5, width // 5, 3), np.uint8)
    return cv2.imencode(".jpg", cv2.resize(pixels, (width, height)))[1].tobytes()


def xml_object(name: str, box: tuple, difficult: int = 0) -> str:
    tags = "".join(f"<{t}>{v}</{t}>" for t, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{tags}</bndbox></object>"


def xml(*objects: str, width: int = 40, height: int = 30) -> str:
    size = f"<size><width>{width}</width><height>{height}</height></size>"
    return f"<annotation>{size}{''.join(objects)}</annotation>"


def add(folder: Path, name: str, *objects: str, image: bytes | None = None, suffix: str = ".jpg", **size: int) -> None:
    """One image of 40 x 30 pixels unless given, and its annotation."""
    for sub in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    (folder / "Annotations" / f"{name}.xml").write_text(xml(*objects, **size))
    (folder / "JPEGImages" / f"{name}{suffix}").write_bytes(jpeg() if image is None else image)


def image_set(folder: Path, name: str, *images: str) -> None:
    (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(images) + "\n")


CAT = xml_object("cat", (1, 1, 20, 15))
DOG = xml_object("dog", (21, 16, 40, 30), difficult=1)
