"""COCO files of a record: where their ids and names come from."""

from pathlib import Path

import numpy as np

from evaluate.detection_files import record_ids


def test_names_of_images_may_hold_unicodes_line_separators(tmp_path: Path) -> None:
    names = ["a\u2028b.png", "c\u0085d.png", "e f.png"]
    lines = [f"{k}\t2\t6\t{name}\n" for k, name in enumerate(names)]
    (tmp_path / "shapes.lst").write_text("".join(lines), "utf-8")
    assert record_ids(np.arange(3), 2, str(tmp_path / "shapes.rec")).names == names
