"""deploy.py: what it writes and says, what it refuses."""

import pytest

from config.errors import OptionError
from deploy.main import main
from deploy.model_folder import read_manifest
from tests.deploy.tiny import save_tiny


def test_it_says_what_was_written_and_what_to_try(tmp_path, capsys):
    prefix = save_tiny(tmp_path / "tiny")
    assert main(["--prefix", prefix, "--nms", "0.3", "--force", "--output", str(tmp_path / "a b")]) == 0
    text = capsys.readouterr().out
    assert "epoch 3" in text
    assert f"python demo.py --model '{tmp_path}/a b'" in text
    post = read_manifest(tmp_path / "a b").postprocessing
    assert (post.nms, post.force) == (0.3, True)


def test_the_folder_stands_beside_the_checkpoint_by_default(tmp_path):
    main(["--prefix", save_tiny(tmp_path / "tiny")])
    assert (tmp_path / "tiny-deploy" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--dtype", "float"], "float"),
        (["--dtype", "int8"], "needs --calib-rec"),
        (["--dtype", "bfloat16", "--calib-rec", "a.rec"], "is for --dtype int8"),
    ],
)
def test_number_formats_that_cannot_be_written_are_refused(words, reason):
    with pytest.raises(OptionError, match=reason):
        main(words)


def test_classic_flags_must_agree_with_the_checkpoint(tmp_path):
    prefix = save_tiny(tmp_path / "tiny")
    words = ["--prefix", prefix, "--output", str(tmp_path / "model")]
    with pytest.raises(OptionError, match="--num-class 20: .* leave the option out"):
        main([*words, "--num-class", "20"])
    assert not (tmp_path / "model").exists()
    main([*words, "--topk", "50", "--no-force"])
    assert read_manifest(tmp_path / "model").postprocessing.nms_topk == 50
