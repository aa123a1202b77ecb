"""Every fault of the table is refused with its sentence, or read and told; --skip-bad goes on without it."""

import re
import shlex

import pytest

from common.errors import UserError
from dataset.sidecar import read_sidecar
from tests.dataset import faults, layouts
from tests.dataset.faults import FAULTS
from tools.prepare_dataset import main


def words_of(fault, tmp_path):
    fault.build(tmp_path / "set")
    words = shlex.split(fault.words.replace("FOLDER", str(tmp_path / "set")))
    return [*words, "--target", str(tmp_path / "t.lst"), "--num-thread", "1"]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_told(tmp_path, fault, caplog, capsys):
    pattern = re.escape(fault.says).replace("PATH", ".*")
    words = words_of(fault, tmp_path)
    if fault.read:
        main(words)
        assert re.search(pattern, caplog.text + capsys.readouterr().out)
        assert read_sidecar(tmp_path / "t.rec").num_images == fault.packed
        return
    with pytest.raises(UserError, match=pattern) as caught:
        main(words)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    assert not (tmp_path / "t.rec").exists()


@pytest.mark.parametrize("fault", [one for one in FAULTS if not one.read], ids=lambda fault: fault.name)
def test_skip_bad_goes_on_without_it(tmp_path, fault, capsys):
    words = [*words_of(fault, tmp_path), "--skip-bad"]
    if not fault.packed:
        with pytest.raises(UserError, match=re.escape(fault.says).replace("PATH", ".*")):
            main(words)
        return
    main(words)
    assert re.search(re.escape(fault.says).replace("PATH", ".*"), capsys.readouterr().out)
    assert read_sidecar(tmp_path / "t.rec").num_images == fault.packed


def test_the_document_has_the_table():
    text = layouts.DOCUMENT.read_text("utf-8")
    assert text == layouts.with_table(text, "faults", faults.fault_rows()), "run python -m tests.dataset.layouts"


def test_all_mistakes_of_a_set_are_told_at_once(tmp_path):
    faults._yolo_a("0 .5 .5\n")(tmp_path / "set")
    (tmp_path / "set/labels/b.txt").write_text("cat .5 .5 .1 .1\n")
    with pytest.raises(UserError, match=r"labels that cannot be used: 2 .*--skip-bad.*a\.txt:1: .*; .*b\.txt:1: "):
        main(["--root", str(tmp_path / "set"), "--target", str(tmp_path / "t.lst"), "--num-thread", "1"])
