"""Layers as functions from Symbol to Symbol, with explicit parameter names.

A Layers object carries what is common to all layers of a network: the freeze pattern. The last layer gives det
(B, N, 6), rows [id, score, xmin, ymin, xmax, ymax], id -1 = no detection.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from common.errors import OptionError
from machine.runtime import mx

Symbol: TypeAlias = Any  # mx.sym.Symbol, whose name would load mxnet
Activation: TypeAlias = Callable[[Symbol, str], Symbol]  # relu, relu6 or swish


class Tap(NamedTuple):
    """A feature map that detector heads may read: its symbol (N, channels, H / stride, W / stride) and layer name."""

    symbol: Symbol
    name: str
    channels: int
    stride: int


@dataclass(frozen=True)
class Layers:
    """Builds layers; a BatchNorm whose gamma matches the regular expression `freeze` uses its global statistics.

    fixed_param_names alone would leave such a layer normalising with batch statistics and updating its moving averages.
    """

    freeze: str = ""
    batch_norm_eps: float = 1e-5
    batch_norm_momentum: float = 0.9

    def conv(
        self,
        data: Symbol,
        name: str,
        filters: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        pad: int | None = None,
        dilate: int = 1,
        groups: int = 1,
        bias: bool = True,
        bias_lr_mult: float = 1.0,
        bias_start: np.ndarray | None = None,
    ) -> Symbol:
        """Convolution with parameters NAME_weight and NAME_bias; pad None keeps H and W at stride 1.

        kernel: side, or (height, width). bias_start: (filters,) biases before training, None = 0.
        """
        start = mx.init.Zero() if bias_start is None else mx.init.Constant(bias_start)
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        return mx.sym.Convolution(
            data,
            name=name,
            num_filter=filters,
            kernel=kernel,
            stride=(stride, stride),
            pad=tuple(dilate * (side - 1) // 2 if pad is None else pad for side in kernel),
            dilate=(dilate, dilate),
            num_group=groups,
            no_bias=not bias,
            **({"bias": mx.sym.var(f"{name}_bias", lr_mult=bias_lr_mult, init=start)} if bias else {}),
        )

    def batch_norm(self, data: Symbol, name: str) -> Symbol:
        """Batch normalisation with NAME_gamma, NAME_beta, NAME_moving_mean, NAME_moving_var."""
        return mx.sym.BatchNorm(
            data,
            name=name,
            fix_gamma=False,
            eps=self.batch_norm_eps,
            momentum=self.batch_norm_momentum,
            use_global_stats=self.is_frozen(f"{name}_gamma"),
        )

    def is_frozen(self, parameter: str) -> bool:
        """Whether the freeze pattern matches this parameter name (from its start, as in the classic trainers)."""
        return matches(self.freeze, parameter)

    def conv_relu(self, data: Symbol, name: str, filters: int, kernel: int, **options: int | float | bool) -> Symbol:
        """conv NAME_conv, then ReLU NAME_relu."""
        return relu(self.conv(data, f"{name}_conv", filters, kernel, **options), f"{name}_relu")  # type: ignore[arg-type]

    def conv_bn_relu(
        self,
        data: Symbol,
        name: str,
        filters: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        pad: int | None = None,
        groups: int = 1,
    ) -> Symbol:
        """conv NAME_conv2d without bias, NAME_batchnorm, ReLU NAME_relu (names of the classic MobileNet symbol)."""
        conv = self.conv(data, f"{name}_conv2d", filters, kernel, stride=stride, pad=pad, groups=groups, bias=False)
        return relu(self.batch_norm(conv, f"{name}_batchnorm"), f"{name}_relu")


def matches(pattern: str, name: str) -> bool:
    """re.match of an optional pattern; '' matches nothing. A malformed pattern raises OptionError."""
    if not pattern:
        return False
    try:
        return re.match(pattern, name) is not None
    except re.error as error:
        raise OptionError(f"--freeze {pattern!r} is not a regular expression: {error}") from error


def relu(data: Symbol, name: str) -> Symbol:
    """Rectifier."""
    return mx.sym.Activation(data, act_type="relu", name=name)


def relu6(data: Symbol, name: str) -> Symbol:
    """Rectifier that ends at 6 (Sandler et al. 2018, section 3.3)."""
    return mx.sym.clip(data, a_min=0.0, a_max=6.0, name=name)


def activate(data: Symbol, name: str, function: Activation) -> Symbol:
    """function of data, called NAME_ and the function's name, such as NAME_swish."""
    return function(data, f"{name}_{function.__name__}")


def add(left: Symbol, right: Symbol, name: str) -> Symbol:
    """Sum of two maps of one shape."""
    return mx.sym.elemwise_add(left, right, name=name)


def concat(*maps: Symbol, name: str) -> Symbol:
    """Maps of one height and width, one after the other along the channels."""
    return mx.sym.concat(*maps, dim=1, name=name)


def average_pool(data: Symbol, name: str, kernel: int, stride: int, pad: int = 0) -> Symbol:
    """Average pooling; the padding counts as zeros, a last partial window is dropped."""
    return mx.sym.Pooling(
        data, name=name, pool_type="avg", kernel=(kernel, kernel), stride=(stride, stride), pad=(pad, pad)
    )


def max_pool(data: Symbol, name: str, kernel: int, stride: int, pad: int = 0, ceil_mode: bool = False) -> Symbol:
    """Max pooling; ceil_mode keeps a last partial window, so that 75 becomes 38 at kernel 2, stride 2."""
    return mx.sym.Pooling(
        data,
        name=name,
        pool_type="max",
        kernel=(kernel, kernel),
        stride=(stride, stride),
        pad=(pad, pad),
        pooling_convention="full" if ceil_mode else "valid",
    )


def l2_normalise(data: Symbol, name: str, channels: int, scale: float) -> Symbol:
    """Divides each pixel by its L2 norm over the channels and multiplies by a learnt scale per channel.

    data (N, channels, H, W); parameter NAME_scale (1, channels, 1, 1) starts at `scale` and decays with a tenth of
    the weight decay. An all-zero pixel stays zero with a finite gradient. Source: ParseNet section 3.3; SSD section
    3.1 (scale 20).
    """
    weight = mx.sym.var(f"{name}_scale", shape=(1, channels, 1, 1), init=mx.init.Constant(scale), wd_mult=0.1)
    normalised = mx.sym.L2Normalization(data, mode="channel", name=f"{name}_norm")
    return mx.sym.broadcast_mul(weight, normalised)


def swish(data: Symbol, name: str) -> Symbol:
    """x times its sigmoid (Ramachandran et al. 2017)."""
    return mx.sym.elemwise_mul(data, mx.sym.Activation(data, act_type="sigmoid", name=f"{name}_sigmoid"), name=name)


def mish(data: Symbol, name: str) -> Symbol:
    """x times the hyperbolic tangent of log(1 + e^x) (Misra 2019)."""
    soft = mx.sym.Activation(data, act_type="softrelu", name=f"{name}_softplus")
    return mx.sym.elemwise_mul(data, mx.sym.Activation(soft, act_type="tanh", name=f"{name}_tanh"), name=name)


def same_conv(
    layers: Layers, data: Symbol, name: str, filters: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> Symbol:
    """Convolution without bias and with TensorFlow's SAME padding, of maps with even sides if the stride is 2.

    At stride 2 the padding of an odd kernel is one less above and on the left. Padding symmetrically by one more than
    it has below makes a first row and column in excess. Maps with odd sides become as large as TensorFlow's, but what
    they show is moved by one of their pixels.
    """
    if stride == 1:
        return layers.conv(data, name, filters, kernel, groups=groups, bias=False)
    if stride != 2 or kernel % 2 == 0:
        raise ValueError(f"{name}: SAME padding is built for stride 2 and odd kernels, not for {stride} and {kernel}")
    wide = layers.conv(data, name, filters, kernel, stride=2, pad=(kernel + 1) // 2, groups=groups, bias=False)
    return mx.sym.slice(wide, begin=(None, None, 1, 1), end=(None, None, None, None), name=f"{name}_same")


class SharedSeparable:
    """Depthwise 3x3 without bias, then 1x1 with bias; every call has the same weights.

    Parameters are NAME_depthwise_weight, NAME_pointwise_weight and NAME_pointwise_bias. bias_start: as of Layers.conv,
    for all filters.
    """

    KERNEL = 3

    def __init__(self, name: str, channels: int, filters: int, bias_start: float = 0.0) -> None:
        self._channels, self._filters = channels, filters
        self._depthwise, self._pointwise = (
            mx.sym.var(f"{name}_depthwise_weight"),
            mx.sym.var(f"{name}_pointwise_weight"),
        )
        self._bias = mx.sym.var(f"{name}_pointwise_bias", init=mx.init.Constant(bias_start))

    def __call__(self, data: Symbol, name: str) -> Symbol:
        """data (N, channels, H, W) -> (N, filters, H, W); the layers are called NAME_depthwise and NAME_pointwise."""
        net = mx.sym.Convolution(
            data,
            weight=self._depthwise,
            no_bias=True,
            num_filter=self._channels,
            num_group=self._channels,
            kernel=(self.KERNEL, self.KERNEL),
            pad=(self.KERNEL // 2, self.KERNEL // 2),
            name=f"{name}_depthwise",
        )
        return mx.sym.Convolution(
            net,
            weight=self._pointwise,
            bias=self._bias,
            num_filter=self._filters,
            kernel=(1, 1),
            name=f"{name}_pointwise",
        )


def per_class_detection(
    prob: Symbol,
    loc_pred: Symbol,
    anchors: Symbol,
    *,
    topk: int,
    keep: int,
    threshold: float,
    nms: float,
    force: bool,
    variances: Sequence[float],
    clip: bool = False,
    pooled: bool = False,
) -> Symbol:
    """det (B, keep, 6), best first, as ssd.pytorch's Detect makes it: an anchor may give several classes.

    prob (B, A, C + 1) with the background first, loc_pred (B, A, 4) offsets, anchors (1, A, 4) corners. Of each class
    the topk best boxes (at most A) are considered, pooled: of all classes together; those with a score above the
    threshold suppress worse ones of their class (force: of any class) with an IoU above nms; the keep best of all
    classes (at most those considered) remain. Boxes are not clipped; clip limits them to the image before suppression.
    Source: SSD, section 3.1 (inference); Caffe's DetectionOutput; pooled: gluoncv's SSD; clip: torchvision's.
    """
    scores = mx.sym.transpose(mx.sym.slice_axis(prob, axis=2, begin=1, end=None), axes=(0, 2, 1))  # (B, C, A)
    best = mx.sym.topk(scores, axis=2, k=topk, ret_typ="both", name="detection_topk")  # scores and anchors (B, C, topk)
    std = {f"std{k}": float(value) for k, value in enumerate(variances)}
    boxes = mx.sym.contrib.box_decode(loc_pred, anchors, format="corner", **std)  # (B, A, 4)
    boxes = mx.sym.clip(boxes, a_min=0.0, a_max=1.0) if clip else boxes
    boxes = take_rows(boxes, best[1], axes=3)  # (B, C, topk, 4)
    ids = mx.sym.contrib.arange_like(best[0], axis=1)  # (C,)
    ids = mx.sym.broadcast_like(mx.sym.reshape(ids, shape=(1, -1, 1)), best[0])  # (B, C, topk)
    found = mx.sym.concat(mx.sym.stack(ids, best[0], axis=3), boxes, dim=3)  # (B, C, topk, 6)
    if force or pooled:
        found = mx.sym.reshape(found, shape=(0, -3, 0))  # (B, C * topk, 6)
    if pooled:
        found = _best_rows(found, topk, name="detection_pairs")  # (B, topk, 6)
    columns = {"score_index": 1, "coord_start": 2} | ({"id_index": 0, "force_suppress": force} if pooled else {})
    found = mx.sym.contrib.box_nms(found, overlap_thresh=nms, valid_thresh=threshold, name="detection_nms", **columns)
    if not (force or pooled):
        found = mx.sym.reshape(found, shape=(0, -3, 0))  # (B, C * topk, 6)
    return _best_rows(found, keep, name="detection_keep", rows_name="detection")


def _best_rows(found: Symbol, count: int, name: str, rows_name: str | None = None) -> Symbol:
    """The rows (B, count, 6) of the best scores, best first, of rows (B, N, 6)."""
    scores = mx.sym.reshape(mx.sym.slice_axis(found, axis=2, begin=1, end=2), shape=(0, -1))  # (B, N)
    return take_rows(found, mx.sym.topk(scores, axis=1, k=count, name=name), axes=2, name=rows_name)


def take_rows(data: Symbol, rows: Symbol, axes: int, name: str | None = None) -> Symbol:
    """Rows of each image's own data (B, N, W): rows (B, ...) of `axes` axes hold their numbers; gives (B, ..., W)."""
    images = mx.sym.reshape(mx.sym.contrib.arange_like(data, axis=0), shape=(-1,) + (1,) * (axes - 1))
    return mx.sym.gather_nd(data, mx.sym.stack(mx.sym.broadcast_like(images, rows), rows, axis=0), name=name)
