"""tools/sign_metadata.py: an edit on purpose is signed, what would not load is refused, older files are brought up."""

import json
import shutil

import pytest

from common.errors import DataError, OptionError
from dataset.sidecar import read_sidecar, sidecar_path
from model.checkpoint import best_epoch, load_checkpoint, meta_path, write_best
from model.folder import inference_model, model_from_checkpoint, read_model_folder, write_model_folder
from model.manifest import MANIFEST
from tests.model.tiny import save_tiny
from tests.signing import earlier
from tests.train.tiny import write_record
from tools.sign_metadata import main


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    prefix = save_tiny(folder / "tiny")
    write_best(prefix, 3, "mAP", 0.5)
    write_model_folder(folder / "model", inference_model(model_from_checkpoint(load_checkpoint(prefix, 3))))
    write_record(folder / "a.rec", 2)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "made")


@pytest.fixture
def files(folder):
    """One file of each kind."""
    prefix = str(folder / "tiny")
    return [
        meta_path(prefix, 3),
        folder / "model" / MANIFEST,
        sidecar_path(folder / "a.rec"),
        folder / "tiny-best.json",
    ]


def replace_in(path, before, after):
    text = path.read_text("utf-8")
    assert before in text
    path.write_text(text.replace(before, after), "utf-8")


def load_all(folder):
    prefix = str(folder / "tiny")
    meta, manifest = load_checkpoint(prefix, 3).meta, read_model_folder(folder / "model").manifest
    return meta, manifest, read_sidecar(folder / "a.rec"), best_epoch(prefix)


def test_edited_files_are_signed(folder, files, capsys):
    for path in files[:2]:
        replace_in(path, '"resize_mode": "force"', '"resize_mode": "letterbox"')
    replace_in(files[2], '"source": "test"', '"source": "mine"')
    replace_in(files[3], '"epoch": 3', '"epoch": 2')
    main(list(map(str, files)))
    words = ("checkpoint, signed", "manifest, signed", "sidecar, signed", "note of the best epoch, signed")
    assert capsys.readouterr().out.splitlines() == [f"{p}: {w}" for p, w in zip(files, words, strict=True)]
    meta, manifest, sidecar, best = load_all(folder)
    assert (meta.resize_mode, manifest.resize_mode, sidecar.source, best) == ("letterbox", "letterbox", "mine", 2)
    before = [path.stat().st_mtime_ns for path in files]
    main(list(map(str, files)))
    assert capsys.readouterr().out.count("nothing to do, its digest is right") == len(files)
    assert [path.stat().st_mtime_ns for path in files] == before


def test_files_of_earlier_versions_become_signed_ones(folder, files, capsys, caplog):
    texts, known = [path.read_text("utf-8") for path in files], load_all(folder)
    for path, text, number in zip(files, texts, (1, 1, None, None), strict=True):
        path.write_text(earlier(text, number), "utf-8")
    main(list(map(str, files)))
    assert capsys.readouterr().out.count("of an earlier version (format 1), now of format 2 and signed") == len(files)
    assert [path.read_text("utf-8") for path in files] == texts
    assert load_all(folder) == known
    assert not caplog.records


@pytest.mark.parametrize(
    ("file", "before", "after", "words"),
    [
        (0, '"resize_mode"', '"rerize_mode"', "checkpoint has the unknown key 'rerize_mode'"),
        (0, '"force"', '"fit"', "field resize_mode is wrong: 'fit'"),
        (0, '"epoch": 3', '"epoch": 4', "field epoch is wrong: 4"),
        (0, '"seed": 1', '"seed": "1"', "checkpoint.seed is not of type int"),
        (0, '"format": 2', '"format": 3', "format is 3, this version reads 1 to 2 only"),
        (1, "model-0000.params", "other.params", "files are not model-symbol.json and model-0000.params"),
        (1, '"operator"', '"operation"', "operator is missing in manifest.postprocessing"),
        (2, '"num_images": 2', '"num_images": -2', "num_images is negative"),
        (3, '"epoch": 3,', "", "epoch is missing in note of the best epoch"),
    ],
)
def test_what_would_not_load_is_not_signed(files, file, before, after, words):
    replace_in(files[file], before, after)
    content = files[file].read_bytes()
    with pytest.raises(DataError, match=rf"{files[file].name}: not signed, as it would not load \({words}"):
        main([str(files[file])])
    assert files[file].read_bytes() == content


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"command": "train.py", "options": {}, "versions": {}, "continue": "", "threads": 1}',
        "[" * 100_000,
        "\xff",
        '{"epoch": 3',
    ],
)
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match="other.json: not signed"):
        main([str(path)])
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="other.json: not signed, as it is not text"):
        main([str(path)])
    with pytest.raises(DataError, match="none.json: cannot be read"):
        main([str(tmp_path / "none.json")])


def test_words_and_options(files):
    with pytest.raises(OptionError, match="no file is named"):
        main([])
    with pytest.raises(OptionError, match="unknown option --force"):
        main([str(files[0]), "--force"])
    assert json.loads(files[0].read_text("utf-8"))["format"] == 2
