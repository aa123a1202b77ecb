"""Options of EfficientDet's networks alone; NetworkOptions adds what families share.

Defaults are the paper's (Tan et al. 2020, section 5.1), where it is silent those of the PyTorch trainers.
"""

from dataclasses import dataclass

from config.options import option


@dataclass(frozen=True)
class EffDetOptions:
    """Anchors, targets, losses and regularisation of EfficientDet."""

    anchor_scale: float = option(
        0.0,
        "side of a map's smallest square anchor, in cells of that map; 0 = the network's own (4, D7: 5)",
        "efficientdet network",
        minimum=0.0,
    )
    drop_connect: float = option(
        0.2,
        "share of the samples that skip the last block's residual while training; earlier ones less, in proportion",
        "efficientdet network",
        minimum=0.0,
        maximum=0.9,
    )
    bn_momentum: float = option(
        0.99,
        "share of its moving averages that batch norm keeps at an update; lower for runs of few updates",
        "efficientdet network",
        minimum=0.0,
        maximum=0.9999,
    )

    pos_iou: float = option(
        0.5, "IoU from which an anchor learns its object", "efficientdet losses", minimum=0.0, maximum=1.0
    )
    neg_iou: float = option(
        0.4, "IoU below which an anchor is background", "efficientdet losses", minimum=0.0, maximum=1.0
    )
    focal_alpha: float = option(
        0.25, "weight of positives; negatives have 1 - it", "efficientdet losses", minimum=0.0, maximum=1.0
    )
    focal_gamma: float = option(
        2.0, "gamma of the focal loss; 0 = cross entropy", "efficientdet losses", minimum=0.0, maximum=10.0
    )
    prob_clamp: float = option(
        1e-4,
        "probabilities are kept this far from 0 and 1, without gradient beyond; 0 = exact for all logits",
        "efficientdet losses",
        minimum=0.0,
        maximum=0.1,
    )
    smooth_l1_beta: float = option(
        1 / 9, "error at which the box loss turns from a parabola to a line", "efficientdet losses", minimum=1e-6
    )
