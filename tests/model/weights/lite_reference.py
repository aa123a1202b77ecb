"""EfficientNet-Lite's classifier by its own parameters: the whole in torch, and the head in numpy.

Written from tensorflow/tpu, models/official/efficientnet/lite/efficientnet_lite_builder.py and efficientnet_model.py.
"""

import numpy as np

EPSILON = 1e-3
STAGES = (
    (1, 3, 1),
    (2, 3, 2),
    (2, 5, 2),
    (3, 3, 2),
    (3, 5, 1),
    (4, 5, 2),
    (1, 3, 1),
)  # repeats of Lite0, kernel, stride
DEPTHS = {0: 1.0, 1: 1.1, 2: 1.2}


def picture(side):
    """A picture made by a formula, RGB of 0..255: (3, side, side)."""
    y, x = np.mgrid[:side, :side] / side
    waves = [np.sin(9 * x + 4 * y * (k + 1)) * np.cos(7 * y - 3 * x * (k + 1)) for k in range(3)]
    return np.round(127.5 + 127.5 * np.stack(waves)).astype(np.float32)


def torch_features(state, number, data):
    """[c2, c3, c4, c5] of data (N, 3, H, W), as numpy."""
    import torch
    from torch.nn import functional

    weights = {name: torch.from_numpy(np.asarray(array, np.float32)) for name, array in state.items()}

    def same(net, name, kernel, stride, groups=1):
        pads = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in net.shape[2:]]
        (top, bottom), (left, right) = ((pad // 2, pad - pad // 2) for pad in pads)
        net = functional.pad(net, (left, right, top, bottom))
        return functional.conv2d(net, weights[f"{name}.weight"], stride=stride, groups=groups)

    def norm(net, name):
        parts = (weights[f"{name}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(net, *parts, eps=EPSILON)

    net = functional.relu6(norm(same(torch.from_numpy(data), "_conv_stem", 3, 2), "_bn0"))
    number_of_block, found = 0, []
    for place, (repeats, kernel, stride) in enumerate(STAGES):
        if 0 < place < len(STAGES) - 1:
            repeats = int(np.ceil(repeats * DEPTHS[number]))
        if stride == 2:
            found.append(net)
        for repeat in range(repeats):
            name, start = f"_blocks.{number_of_block}.", net
            if f"{name}_expand_conv.weight" in weights:
                net = functional.relu6(norm(same(net, f"{name}_expand_conv", 1, 1), f"{name}_bn0"))
            step = 1 if repeat else stride
            net = same(net, f"{name}_depthwise_conv", kernel, step, groups=net.shape[1])
            net = functional.relu6(norm(net, f"{name}_bn1"))
            net = norm(same(net, f"{name}_project_conv", 1, 1), f"{name}_bn2")
            net = net + start if repeat else net
            number_of_block += 1
    return [one.numpy() for one in (*found[1:], net)]


def logits(state, c5):
    """Class scores (N, 1000) of the last map (N, C, H, W)."""
    net = np.einsum("nchw,oc->nohw", c5, state["_conv_head.weight"][:, :, 0, 0])
    parts = (state[f"_bn1.{kind}"][:, None, None] for kind in ("running_mean", "running_var", "weight", "bias"))
    mean, variance, gamma, beta = parts
    net = np.clip((net - mean) / np.sqrt(variance + EPSILON) * gamma + beta, 0, 6).mean(axis=(2, 3))
    return net @ state["_fc.weight"].T + state["_fc.bias"]
