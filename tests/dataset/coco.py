"""A small COCO folder for the tests of reading and packing."""

import json
from pathlib import Path
from typing import Any

from tests.dataset.voc import jpeg

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]


def annotation(image: int, category: int, box: list[float], crowd: int = 0, **more: Any) -> dict[str, Any]:
    entry = {"image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd, "area": 1.0}
    return {**entry, "segmentation": [[0, 0, 1, 1, 2, 2]], **more}


def image(number: int, name: str | None = None) -> dict[str, Any]:
    return {"id": number, "file_name": name or f"{number:012d}.jpg", "height": 30, "width": 40}


def content(images: list[Any], annotations: list[Any], categories: Any = CATEGORIES) -> dict[str, Any]:
    numbered = [{"id": k, **one} if isinstance(one, dict) else one for k, one in enumerate(annotations, 1)]
    return {"info": {}, "images": images, "annotations": numbered, "categories": categories}


def write_set(root: Path, name: str, what: dict[str, Any] | str, folder: str = "") -> Path:
    """The annotation file of a set, and its images in `folder` (the set's name unless given)."""
    path = root / "annotations" / f"instances_{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(what if isinstance(what, str) else json.dumps(what))
    images = root / (folder or name)
    images.mkdir(parents=True, exist_ok=True)
    for entry in [] if isinstance(what, str) else what.get("images", []):
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if isinstance(name, str) and name.isprintable() and "/" not in name:
            (images / name).write_bytes(jpeg())
    return path
