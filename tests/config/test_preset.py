"""Every preset is read, builds its network and suits its checks."""

import pytest

from config.groups import best_metric, validation_kinds
from config.options import from_mapping
from config.preset import PRESET_FOLDER, read_preset
from train.options import augment_options, network_options, train_options_class

NAMES = sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_makes_a_network_and_an_augmentation(name):
    from common.sizes import input_size
    from symbol.symbol_factory import get_assigner, get_symbol_train

    options = from_mapping(train_options_class(), read_preset(train_options_class(), name))
    network = network_options(options)
    symbol = get_symbol_train(options.input.network, options.input.data_shape, 3, **network)
    assert symbol.list_outputs()[-1].startswith("det")
    assert get_assigner(options.input.network, options.input.data_shape, 3, **network) is not None
    assert len(input_size(options.input.data_shape)) == 2
    assert augment_options(options) is not None
    assert validation_kinds(options.validation)
    assert best_metric(options.validation)
