"""Every preset is read, builds its network and suits its checks."""

import pytest

from config.options import PRESET_FOLDER, from_mapping, read_preset
from config.run import best_metric, metric_kinds
from train.options import augment_options, network_options, train_options_class

NAMES = sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_makes_a_network_and_an_augmentation(name):
    from common.sizes import input_size
    from symbol.symbol_factory import get_assigner, get_symbol_train

    options = from_mapping(train_options_class(), read_preset(train_options_class(), name))
    network = network_options(options)
    symbol = get_symbol_train(options.network, options.data_shape, 3, **network)
    assert symbol.list_outputs()[-1].startswith("det")
    assert get_assigner(options.network, options.data_shape, 3, **network) is not None
    assert len(input_size(options.data_shape)) == 2
    assert augment_options(options) is not None
    assert metric_kinds(options)
    assert best_metric(options)
