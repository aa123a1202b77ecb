"""PyTorch's .pth files: ssd.pytorch's networks, its vgg16_reducedfc.pth, and torchvision's VGG16.

A state_dict of SSD300 has vgg.N (places of convolutions among ReLUs and pools), L2Norm, extras.N (a 1x1 and a 3x3
convolution for each extra layer), loc.N and conf.N (heads, a feature map each). The order of anchors,
classes (background first) and image channels (RGB) is ours, so that arrays keep their values.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import CheckpointError, InstallError
from model.weights import vgg
from model.weights.vgg import Arrays

# Indices of the convolutions in torchvision's vgg16().features; ssd.pytorch's vgg begins alike.
VGG_INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
REDUCED = {31: "fc6", 33: "fc7"}
CLASSIFIER = {0: "fc6", 3: "fc7"}
HEADS = {"loc": "loc_pred_conv", "conf": "cls_pred_conv"}
PARAMETER = re.compile(r"(?:module\.)?(?:(vgg|features|classifier|extras|loc|conf)\.)?(\d+)\.(weight|bias)")
L2_NORM = re.compile(r"(?:module\.)?L2Norm\.weight")
WRAPPERS = ("state_dict", "model")  # keys under which training scripts keep the state_dict
# torchvision's preprocessing: RGB / 255, less the mean, over the standard deviation; ours: RGB less MEAN_PIXELS.
MEAN = np.array((0.485, 0.456, 0.406))
STD = np.array((0.229, 0.224, 0.225))
MEAN_PIXELS = np.array((123.0, 117.0, 104.0))


def read(path: str | Path) -> Arrays:
    """{name: array} of a state_dict saved by torch.save; nothing but tensors is unpickled (weights_only).

    CheckpointError for a file that is missing, damaged or no state_dict; InstallError without torch.
    """
    try:
        import torch
    except ImportError as error:
        raise InstallError(f"{path}: reading .pth files needs torch: pip install 'torch>=2.10'") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except pickle.UnpicklingError as error:  # its text advises to run what the file holds
        raise CheckpointError(f"{path}: damaged, or it holds more than tensors, which is never run") from error
    except (RuntimeError, EOFError, ValueError, LookupError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: not a state_dict of torch.save ({reason})") from error
    return _arrays(content, path)


def rename(arrays: Mapping[str, np.ndarray], network: str, options: Mapping[str, Any]) -> tuple[Arrays, Arrays]:
    """(arg, aux) under our names of a state_dict of ssd.pytorch, vgg16_reducedfc.pth or torchvision's vgg16.

    network and options change nothing: every network here with the body of VGG16 has the same names. CheckpointError
    for other state_dicts.
    """
    named = {own_name(name): array for name, array in arrays.items()}
    vgg.check_body(named, "PyTorch")
    if any(name.startswith("features.") for name in arrays):
        named = _for_pixels(vgg.reduce_classifier(named), is_scaled=_has_classifier(named))
    return vgg.shape_scale(named), {}


def _arrays(content: Any, path: str | Path) -> Arrays:
    """The arrays of a state_dict, or of one in a dict of a training script; float32."""
    if isinstance(content, dict):
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not content or not all(hasattr(value, "numpy") for value in content.values()):
        raise CheckpointError(f"{path}: holds no state_dict; save one by torch.save(model.state_dict(), FILE)")
    return {str(name): tensor.detach().float().numpy() for name, tensor in content.items()}


def own_name(name: str) -> str:
    """Our name of a parameter; names that are not known stay."""
    if L2_NORM.fullmatch(name):
        return vgg.SCALE
    match = PARAMETER.fullmatch(name)
    layer = match and _layer(match[1] or "vgg", int(match[2]))
    return f"{layer}_{match[3]}" if match and layer else name


def _layer(part: str, index: int) -> str | None:
    """Our name of a layer: `part` is the module list in the state_dict, `index` the place in it; None: unknown."""
    if part in HEADS:
        return f"{_map_name(index)}_{HEADS[part]}"
    if part == "extras":
        size = "3x3" if index % 2 else "1x1"
        return f"multi_feat_{vgg.FIRST_EXTRA + index // 2}_conv_{size}_conv"
    if part == "classifier":
        return CLASSIFIER.get(index)
    if index in VGG_INDICES:
        return vgg.CONVOLUTIONS[VGG_INDICES.index(index)]
    return REDUCED.get(index) if part == "vgg" else None


def _map_name(index: int) -> str:
    """The layer that head `index` reads."""
    return ("relu4_3", "relu7")[index] if index < vgg.FIRST_EXTRA else f"multi_feat_{index}_conv_3x3_relu"


def _has_classifier(named: Mapping[str, np.ndarray]) -> bool:
    """Whether torchvision trained the file: VGG16_Weights.IMAGENET1K_FEATURES is Caffe's body with a NaN classifier."""
    return "fc6_weight" not in named or bool(np.isfinite(named["fc6_weight"]).all())


def _for_pixels(named: Arrays, is_scaled: bool) -> Arrays:
    """Arrays for pixels of 0..255 less MEAN_PIXELS.

    is_scaled: the file is for torchvision's scaled images, so the first convolution takes the scale; the difference of
    the means goes to its bias, which leaves a small error at the border of the image. Without it, the file is for
    pixels already, and its classifier, which is NaN, is dropped.
    """
    if not is_scaled:
        return {name: array for name, array in named.items() if not name.startswith(("fc6", "fc7"))}
    weight = named[vgg.FIRST_WEIGHT]
    shift = (weight * ((MEAN_PIXELS / 255 - MEAN) / STD)[:, None, None]).sum(axis=(1, 2, 3))
    scaled = {vgg.FIRST_WEIGHT: (weight / (255 * STD)[:, None, None]).astype(np.float32)}
    bias = vgg.FIRST_WEIGHT.replace("weight", "bias")
    if bias in named:
        scaled[bias] = (named[bias] + shift).astype(np.float32)
    return named | scaled
