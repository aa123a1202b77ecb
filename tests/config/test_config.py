"""cfg.train and cfg.valid: the classic values, refused misspellings, what becomes of them."""

import copy

import pytest

from common.errors import OptionError
from config.augment_options import TrainAugment
from config.config import CLASSIC_NAMES, cfg, classic_arguments, iterator_options
from machine.cpu import usable_threads
from machine.runtime import mx


@pytest.fixture
def train():
    return copy.deepcopy(cfg.train)


def test_classic_values():
    assert cfg.train["rand_crop_prob"] == 5 / 6
    assert (cfg.train.num_crop_sampler, cfg.train.seed, cfg.train.shuffle) == (5, 233, True)
    assert cfg.train.min_crop_overlaps == (0.1, 0.3, 0.5, 0.7, 0.9)
    assert (cfg.train.inter_method, cfg.train.preprocess_threads, cfg.train.crop_emit_mode) == (10, 48, "center")
    assert (cfg.valid.num_crop_sampler, cfg.valid.seed, cfg.valid.shuffle, cfg.valid.fill_value) == (0, 0, False, 127)
    assert cfg.valid.max_pad_scale == 1
    assert not any(value for name, value in cfg.valid.items() if name.endswith("_prob"))


def test_iterator_options(train):
    options = {"augment": TrainAugment(), "shuffle": True, "seed": 233, "workers": usable_threads()}
    assert iterator_options(cfg.train) == options
    assert iterator_options(cfg.valid) == {"augment": None, "shuffle": False, "seed": 0, "workers": usable_threads()}
    train.preprocess_threads = 1
    train["rand_mirror_prob"] = 0
    assert iterator_options(train) == options | {"augment": TrainAugment(rand_mirror_prob=0.0), "workers": 1}
    assert iterator_options({**cfg.train, "num_crop_sampler": 0})["augment"].num_crop_sampler == 0


def test_misspelt_keys_are_refused(train):
    with pytest.raises(OptionError, match="rand_miror_prob .did you mean rand_mirror_prob"):
        train.rand_miror_prob = 0
    with pytest.raises(OptionError, match="rand_miror_prob"):
        train["rand_miror_prob"] = 0
    with pytest.raises(OptionError, match="rand_miror_prob"):
        train.update(rand_miror_prob=0)
    with pytest.raises(AttributeError, match="did you mean rand_mirror_prob"):
        print(train.rand_miror_prob)
    with pytest.raises(OptionError, match="removed"):
        del train["rand_mirror_prob"]
    with pytest.raises(OptionError, match="rand_miror_prob.*did you mean"):
        iterator_options({**train, "rand_miror_prob": 0})
    assert dict(train) == dict(cfg.train)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_crop_sampler": 4}, "num_crop_sampler is 4"),
        ({"rand_pad_prob": 2}, "--rand-pad-prob in cfg"),
        ({"max_pad_scale": "wide"}, "--max-pad-scale in cfg"),
        ({"preprocess_threads": 0}, "--preprocess-threads in cfg"),
        ({"shuffle": "perhaps"}, "--shuffle in cfg"),
    ],
)
def test_wrong_values_are_refused(changes, message):
    with pytest.raises(OptionError, match=message):
        iterator_options({**cfg.train, **changes})


def test_arguments_are_those_that_mxnet_knows():
    arguments = classic_arguments(TrainAugment())
    assert arguments.keys() == CLASSIC_NAMES | {"num_crop_sampler"}
    assert all(f"\n{name} : " in mx.io.ImageDetRecordIter.__doc__ for name in arguments)
    assert "min_crop_scales" not in classic_arguments(None)
