"""The files of detections."""

import json

import pytest

from detect.outputs import Records


@pytest.mark.parametrize("count", [0, 2])
def test_a_list_or_a_line_for_each_picture(tmp_path, count):
    expected = [{"image": str(k), "detections": []} for k in range(count)]
    for name in ("a.json", "a.jsonl", "B.JSONL"):
        records = Records(str(tmp_path / name))
        for record in expected:
            records.add(record)
        records.close()
        text = (tmp_path / name).read_text("utf-8")
        found = json.loads(text) if name == "a.json" else [json.loads(line) for line in text.splitlines()]
        assert found == expected
