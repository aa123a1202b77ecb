"""Option classes on the command line and in presets."""

import dataclasses
import importlib
import os
import pkgutil
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import config
from common.errors import OptionError
from config import preset as module
from config.command_line import parse_options
from config.groups import obsolete
from config.options import (
    fields_of,
    from_mapping,
    group,
    joined_options,
    option,
    replace_options,
    same_option,
    to_mapping,
)
from config.preset import read_preset, read_yaml


@dataclass(frozen=True)
class Run:
    """One field of each kind."""

    network: str = option("vgg16_reduced", "the backbone", "network", choices=("vgg16_reduced", "mobilenet"))
    data_shape: tuple[int, ...] = option((300,), "input size", "network", minimum=1)
    lr: float = option(0.004, "learning rate, 50% of the usual", "training", minimum=0)
    lr_steps: tuple[float, ...] = option((), "epochs at which the rate falls", "training")
    resume: int = option(-1, "epoch to go on from", "training")
    batch_size: int = option(32, "images per step", "training", minimum=1, maximum=4096)
    shuffle: bool = option(True, "new order in each epoch")
    force: bool = option(False, "overwrite")
    prefix: str = option("output/ssd", "where checkpoints go")
    seed: int | None = option(None, "random seed")
    classes: tuple[str, ...] = option((), "class names")


@dataclass(frozen=True)
class Hidden:
    """A field with a name that is in no help, and one of a form of its own."""

    data_engine: str = option(
        "python", "who", choices=("python", "native"), hidden={"engine": "takes a data engine here"}
    )
    side: tuple[int, ...] = option((300,), "side", form="a side, or height,width")


@dataclass(frozen=True)
class Again:
    """A field of another class, as it is."""

    lr: float = same_option(Run, "lr", None)


def parse(*words: str) -> Run:
    return parse_options(Run, words, "Trains.", presets=True)


def test_no_words_give_the_defaults():
    assert parse() == Run()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--batch-size", "8"], {"batch_size": 8}),
        (["--batch_size", "8"], {"batch_size": 8}),
        (["--batch_size=8"], {"batch_size": 8}),
        (["--lr", "1e-3"], {"lr": 0.001}),
        (["--lr", "1", "--lr", "2"], {"lr": 2.0}),
        (["--lr-steps", "80,160.5"], {"lr_steps": (80.0, 160.5)}),
        (["--lr-steps", "none"], {"lr_steps": ()}),
        (["--lr-steps", "-1,2e1"], {"lr_steps": (-1.0, 20.0)}),
        (["--lr_steps", "-1e-3"], {"lr_steps": (-0.001,)}),
        (["--data-shape", "300, 480"], {"data_shape": (300, 480)}),
        (["--resume", "-1"], {"resume": -1}),
        (["--resume=-12"], {"resume": -12}),
        (["--seed", "none"], {"seed": None}),
        (["--seed", "7"], {"seed": 7}),
        (["--classes", "wbc,a b"], {"classes": ("wbc", "a b")}),
        (["--prefix", "a_b--c=d e"], {"prefix": "a_b--c=d e"}),
        (["--prefix="], {"prefix": ""}),
        (["--prefix", "none"], {"prefix": "none"}),
    ],
)
def test_values(words, expected):
    assert parse(*words) == dataclasses.replace(Run(), **expected)


@pytest.mark.parametrize(
    ("words", "force"),
    [
        (["--force"], True),
        (["--no-force"], False),
        (["--no_force"], False),
        (["--force", "true"], True),
        (["--force", "False"], False),
        (["--force=0"], False),
        (["--force", "--no-force"], False),
        (["--no-force", "--force"], True),
    ],
)
def test_booleans_are_flags_that_also_take_a_word(words, force):
    assert parse(*words, "--lr", "1") == dataclasses.replace(Run(), force=force, lr=1.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--btach-size", "8"], "unknown option --btach-size (did you mean --batch-size?)"),
        (["--no-forse"], "did you mean --no-force?"),
        (["--batch", "8"], "unknown option --batch"),  # no abbreviations: they would change meaning with new options
        (["--batch-size", "3.5"], "--batch-size takes a whole number, not '3.5'"),
        (["--batch-size", "0"], "--batch-size is at least 1, not 0"),
        (["--batch-size", "5000"], "--batch-size is at most 4096, not 5000"),
        (["--batch-size", "9" * 5000], "--batch-size takes a whole number"),
        (["--batch-size"], "argument --batch-size: expected one argument"),
        (["--batch-size", "none"], "--batch-size takes a whole number"),
        (["--data-shape", "300,0"], "--data-shape is at least 1"),
        (["--lr", "nan"], "--lr takes a finite number"),
        (["--lr", "1e999"], "--lr takes a finite number"),
        (["--lr-steps", "1,-inf"], "--lr-steps takes a finite number"),
        (["--network", "vgg"], "--network is one of vgg16_reduced, mobilenet, not 'vgg'"),
        (["--force=maybe"], "--force takes true or false, not 'maybe'"),
        (["--force", "data/x.rec"], "unexpected argument 'data/x.rec'"),
        (["--force", "-1"], "unknown option -1"),
        (["--no-force=1"], "ignored explicit argument"),
        ([""], "unexpected argument ''"),
        (["--config", "shaps"], "no preset of that name (did you mean shapes?); presets: "),
        (["--config", "nowhere"], "--config nowhere: no such file, and no preset of that name"),
        (["--config", ""], "no such file"),
        (["--config", "x" * 5000], "no such file"),
    ],
)
def test_mistakes_are_one_sentence(words, message):
    with pytest.raises(OptionError) as caught:
        parse(*words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@dataclass(frozen=True)
class Grouped:
    """A group beside an option of the class's own."""

    run: Run = group(Run)
    draw: int = option(0, "of what is random", aliases=("random_draw",))
    old: int = obsolete(0, "nothing needs it")


def test_options_of_groups_are_flat_and_keep_their_places():
    options = parse_options(Grouped, ["--lr", "0.5", "--random-draw=3"], "")
    assert (options.run.lr, options.draw) == (0.5, 3)
    assert to_mapping(options) == to_mapping(Run(lr=0.5)) | {"draw": 3, "old": 0}
    assert replace_options(options, lr=1.0, draw=4) == Grouped(Run(lr=1.0), 4)
    assert from_mapping(Grouped, {"random_draw": 5, "batch_size": "8"}) == Grouped(Run(batch_size=8), 5)
    with pytest.raises(TypeError, match="no option is called nothing"):
        replace_options(options, nothing=1)


@dataclass(frozen=True)
class Clash:
    """An option that a group has, too."""

    run: Run = group(Run)
    lr: float = option(0.1, "another rate")


def test_an_option_in_two_groups_is_an_error():
    with pytest.raises(ValueError, match="Clash: --lr is declared twice"):
        parse_options(Clash, [], "")


def test_the_short_help_shows_the_first_options_and_how_to_see_all(capsys):
    for words, shown in ((["--help"], ["--lr "]), (["--help-all"], ["--lr ", "--batch-size", "--draw", "--old"])):
        with pytest.raises(SystemExit):
            parse_options(Grouped, words, "What it does.", example="python it.py --lr 1", first=("lr",))
        text = capsys.readouterr().out
        assert "Example: python it.py --lr 1" in text
        assert [name for name in ("--lr ", "--batch-size", "--draw", "--old") if f"  {name}" in text] == shown
        assert ("more options: --help-all" in text) == (words == ["--help"])
    assert text.index("--old") > text.index("--draw")


def test_help_lists_each_group_with_its_options_and_defaults(capsys):
    with pytest.raises(SystemExit) as end:
        parse("--help")
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.index("network:") < text.index("--data-shape INT,...") < text.index("training:")
    assert text.index("training:") < text.index("--lr FLOAT learning rate, 50% of the usual (default: 0.004)")
    assert "--lr-steps FLOAT,... epochs at which the rate falls" in text
    assert "--network vgg16_reduced|mobilenet" in text
    assert "--force [true|false] overwrite" in text
    assert "--config NAME|FILE" in text


@dataclass(frozen=True)
class Pack:
    """Words without flags, and several after one."""

    prefix: str = option("", "what to make", words="positional")
    root: str = option("", "where it comes from", words="positional")
    list: bool = option(False, "make a list")
    exts: tuple[str, ...] = option((".jpg",), "suffixes", words="several")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a", "b"], Pack("a", "b")),
        (["--list", "a", "b"], Pack("a", "b", list=True)),
        (["a", "--no-list", "b"], Pack("a", "b")),
        (["--exts", ".png", ".bmp", "--list", "a", "b"], Pack("a", "b", True, (".png", ".bmp"))),
        (["a", "b", "--exts", ".png,.bmp"], Pack("a", "b", exts=(".png", ".bmp"))),
    ],
)
def test_positional_and_several_words(words, expected):
    assert parse_options(Pack, words, "Packs.") == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [(["a"], "required: ROOT"), (["a", "b", "c"], "unexpected argument 'c'"), (["a", "b", "--exts"], "--exts")],
)
def test_missing_and_superfluous_words_are_named(words, message):
    with pytest.raises(OptionError, match=message):
        parse_options(Pack, words, "Packs.")


def test_help_shows_positional_words(capsys):
    with pytest.raises(SystemExit):
        parse_options(Pack, ["--help"], "Packs.")
    assert "PREFIX ROOT [--option value ...]" in capsys.readouterr().out


def write(folder, text):
    path = folder / "preset.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_command_line_wins_over_the_preset_wherever_it_stands(tmp_path):
    preset = write(tmp_path, "batch-size: 8\nlr: 1e-3\nlr_steps: [80, 1.5]\nforce: true\nseed: null\n")
    expected = dataclasses.replace(Run(), batch_size=4, lr=0.001, lr_steps=(80.0, 1.5), force=True)
    assert parse("--config", preset, "--batch-size", "4") == expected
    assert parse("--batch-size", "4", "--config", preset) == expected


def test_a_hidden_name_works_is_not_shown_and_has_its_own_sentence(capsys):
    assert parse_options(Hidden, ["--engine", "native"], "").data_engine == "native"
    with pytest.raises(OptionError, match="--engine takes a data engine here, not 'mxnet'"):
        parse_options(Hidden, ["--engine=mxnet"], "")
    with pytest.raises(OptionError, match="--data-engine is one of python, native, not 'mxnet'"):
        parse_options(Hidden, ["--data-engine=mxnet"], "")
    with pytest.raises(SystemExit):
        parse_options(Hidden, ["--help"], "")
    assert "--engine" not in capsys.readouterr().out


def test_a_value_of_another_form_is_told_the_form():
    with pytest.raises(OptionError, match="--side takes a side, or height,width, not '300x300'"):
        parse_options(Hidden, ["--side", "300x300"], "")


def test_options_of_the_first_class_come_first_and_one_may_be_declared_again():
    assert list(fields_of(joined_options("Both", Again, Run)))[0] == "lr"
    assert list(fields_of(joined_options("Both", Hidden, Run)))[:2] == ["data_engine", "side"]
    assert Again().lr == Run().lr


def test_a_preset_is_found_by_name(tmp_path, monkeypatch):
    write(tmp_path, "lr: 1\n")
    monkeypatch.setattr(module, "PRESET_FOLDER", tmp_path)
    assert parse("--config", "preset").lr == 1.0
    with pytest.raises(OptionError, match="of that name; presets: preset"):
        parse("--config", "other")


def test_a_text_means_the_same_in_a_preset_as_on_the_command_line(tmp_path):
    preset = write(tmp_path, 'data_shape: "300,480"\nseed: none\nclasses: a,b\nlr: "0.5"\n')
    assert parse("--config", preset) == parse("--data-shape", "300,480", "--classes", "a,b", "--lr", "0.5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 1\nlr: 2\n", "'lr' is given twice"),
        ("batch-size: 1\nbatch_size: 2\n", "given twice"),
        ("a: &x [1]\nlr_steps: *x\n", "aliases are not allowed"),
        ("lr: !!python/object/apply:os.system ['touch pwned']\n", "not readable as YAML"),
        ("lr: 2020-99-99\n", "not readable as YAML"),
        ("lr: !!int ''\n", "not readable as YAML"),
        ("force: !!bool maybe\n", "not readable as YAML"),
        ("lr:\t1\n\t- x\n", "not readable as YAML"),
        ("[" * 100_000, "not readable as YAML"),
        ("- lr\n", "a preset is a list of `option: value` lines"),
        ("", "a preset is a list of `option: value` lines"),
        ("btach_size: 1\n", "unknown option 'btach_size'"),
        ("network: 3\n", "--network in"),
        ("lr: true\n", "takes a number, not True"),
        ("lr: .nan\n", "finite number"),
        (f"lr: {'9' * 400}\n", "takes a number"),
        ("lr: null\n", "needs a value"),
        ("batch_size: 1.5\n", "takes a whole number, not 1.5"),
        ("batch_size: [1, 2]\n", "takes a whole number, not [1, 2]"),
        ("force: 1\n", "takes true or false, not 1"),
        ("prefix: no\n", "takes a text, not False"),
        ("lr_steps: [1, [2]]\n", "takes a number, not [2]"),
        ("lr_steps: {1: 2}\n", "takes a number, not {1: 2}"),
    ],
)
def test_a_bad_preset_is_named_in_one_sentence(tmp_path, text, message):
    preset = write(tmp_path, text)
    with pytest.raises(OptionError) as caught:
        parse("--config", preset)
    assert message in str(caught.value)
    assert preset in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_preset_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "train.rec"
    path.write_bytes(b"\xff" * (module.MAX_PRESET_BYTES + 1))
    with pytest.raises(OptionError, match="larger than"):
        read_yaml(path)
    path.write_bytes(b"\xff\x00")
    with pytest.raises(OptionError, match="not readable as YAML"):
        read_yaml(path)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read every file")
def test_an_unreadable_file_is_named(tmp_path):
    path = tmp_path / "secret.yaml"
    path.write_text("lr: 1")
    path.chmod(0)
    with pytest.raises(OptionError, match="secret.yaml"):
        read_yaml(path)


def test_options_survive_json_and_yaml():
    options = dataclasses.replace(Run(), lr_steps=(1.0, 2.0), classes=("a,b", "none"), seed=3)
    assert from_mapping(Run, to_mapping(options)) == options
    with pytest.raises(OptionError, match=r"unknown option 'lrr' in run.json \(did you mean lr\?\)"):
        from_mapping(Run, {"lrr": 1}, "run.json")


def option_classes():
    """The option classes of config/, each once."""
    for info in pkgutil.iter_modules(config.__path__):
        if "option" in info.name or info.name == "run":
            for value in vars(importlib.import_module(f"config.{info.name}")).values():
                if dataclasses.is_dataclass(value) and value.__module__ == f"config.{info.name}":
                    yield value


@pytest.mark.parametrize("cls", list(option_classes()), ids=lambda cls: cls.__name__)
def test_every_option_of_the_commands_has_a_valid_default_and_help(cls, capsys):
    required = {f.name: "x" for f in dataclasses.fields(cls) if f.metadata["words"] == "positional"}
    default = cls(**required)
    assert parse_options(cls, list(required.values()), "") == from_mapping(cls, to_mapping(default)) == default
    with pytest.raises(SystemExit):
        parse_options(cls, ["--help"], "")
    text = capsys.readouterr().out
    for field in dataclasses.fields(cls):
        flag = f"--{field.name.rstrip('_').replace('_', '-')}"
        assert (field.name.upper() if field.name in required else flag) in text
        assert field.metadata["help"]


@pytest.mark.parametrize("path", sorted(module.PRESET_FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_is_one_for_training(path):
    from train.options import train_options, train_options_class

    assert parse_options(train_options_class(), ["--config", path.stem], "", presets=True) != train_options()


WORDS = st.one_of(
    st.sampled_from([f"--{name.replace('_', '-')}" for name in Run.__dataclass_fields__]),
    st.sampled_from(["--no-force", "--config", "--lr=", "--", "-", "true", "none", "-1", "1e-3", "1,2", "=", "nan"]),
    st.text(max_size=8).filter(lambda word: not word.startswith("-h")),
)


@settings(deadline=None)  # other processes may hold the CPU
@given(st.lists(WORDS, max_size=6))
@example(["--force", ""])
@example(["--lr", "--lr", "-1"])
@example(["--prefix", "\x00"])
@example(["--config", "\x00"])
def test_any_words_give_options_or_an_option_error(words):
    try:
        result = parse(*words)
    except OptionError:
        return
    assert from_mapping(Run, to_mapping(result)) == result


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(SCALARS, SCALARS, max_size=2))


@settings(deadline=None)  # other processes may hold the CPU
@given(st.dictionaries(st.one_of(st.sampled_from(sorted(Run.__dataclass_fields__)), st.text(max_size=3)), VALUES))
def test_any_mapping_gives_options_or_an_option_error(values):
    try:
        result = from_mapping(Run, values)
    except OptionError:
        return
    assert from_mapping(Run, to_mapping(result)) == result


@settings(deadline=None)  # other processes may hold the CPU
@given(text=st.text(alphabet="lr:-[]{}&*!?|>'\"#% \n\t0123.~y=<\x00\x85", max_size=30))
def test_any_text_as_a_preset_gives_values_or_an_option_error(tmp_path_factory, text):
    preset = write(tmp_path_factory.getbasetemp(), text)
    try:
        values = read_preset(Run, preset)
    except OptionError:
        return
    assert values.keys() <= Run.__dataclass_fields__.keys()


@dataclass(frozen=True)
class Old:
    """Fields as later versions of a command line have them."""

    topk: int = option(400, "boxes kept", aliases=("nms_topk",))
    quiet: bool = option(False, "say nothing", aliases=("silent",))
    threads: int = option(1, "no effect", obsolete="all cores are used")


@pytest.mark.parametrize("word", ["--nms-topk=5", "--nms_topk=5", "--topk=5"])
def test_an_alias_sets_the_field_and_the_last_one_wins(word):
    assert parse_options(Old, ["--topk", "7", word], "") == Old(topk=5)
    assert parse_options(Old, ["--silent"], "") == parse_options(Old, ["--silent", "yes"], "") == Old(quiet=True)
    assert parse_options(Old, ["--quiet", "--no-silent"], "") == Old()


def test_an_obsolete_option_is_told_once_and_has_its_value(caplog, tmp_path):
    assert parse_options(Old, ["--config", write(tmp_path, "threads: 3")], "", presets=True) == Old(threads=3)
    assert [record.message for record in caplog.records] == ["--threads has no effect: all cores are used"]
