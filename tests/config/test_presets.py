"""Every preset is read, builds its network and suits its checks."""

import numpy as np
import pytest

from config.options import PRESET_FOLDER, from_mapping, read_preset
from config.run import TrainOptions, augment_options, best_metric, metric_kinds, network_options

NAMES = sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_makes_a_network_and_an_augmentation(name):
    from symbol.symbol_factory import get_assigner, get_symbol_train, input_size

    options = from_mapping(TrainOptions, read_preset(TrainOptions, name))
    network = network_options(options)
    symbol = get_symbol_train(options.network, options.data_shape, 3, **network)
    assert symbol.list_outputs()[-1].startswith("det")
    assert get_assigner(options.network, options.data_shape, 3, **network) is not None
    assert len(input_size(options.data_shape)) == 2
    assert augment_options(options) is not None
    assert metric_kinds(options)
    assert best_metric(options)


@pytest.mark.parametrize("name", NAMES)
def test_the_targets_of_four_crowded_images_fit(name):
    """COCO's most crowded image has 93 objects; with a mosaic a run must not end at such images."""
    from symbol.symbol_factory import get_assigner, input_size

    options = from_mapping(TrainOptions, read_preset(TrainOptions, name))
    if not options.mosaic_prob:
        pytest.skip("makes no mosaics")
    size = input_size(options.data_shape)
    assigner = get_assigner(options.network, options.data_shape, 3, **network_options(options))
    for side in (0.02, 0.1, 0.5):
        objects = np.tile(np.array([0, 0.5 - side / 2, 0.5 - side / 2, 0.5 + side / 2, 0.5 + side / 2, 0]), (4 * 93, 1))
        assert assigner(objects.astype(np.float32), size)["normaliser"].max() >= 4 * 93
