"""The network in MXNet, of a model folder or a checkpoint, on a CPU or GPU.

What runs is the model's symbol in the number format of its manifest, with memory and weights. Of what Detector and
demo.py import, only this module needs mxnet.
"""

import logging
import threading

import numpy as np

from common.errors import CheckpointError
from config.groups import DeviceOptions
from engines.engine import MXNET, EngineRequest
from graph.number_formats import Fused, fuse, supports_bfloat16, to_bfloat16, to_int8
from graph.onednn import has_squeeze_excitation, pad_predictions, suit_onednn
from graph.symbol_graph import Params, bound, run
from machine.runtime import contexts, mx
from model.folder import Model, load_model
from model.manifest import BFLOAT16, FLOAT32, UINT8_NHWC
from model.symbol_check import last_line

logger = logging.getLogger(__name__)


class BoundModel:
    """A model with memory and weights for `batch` images, or for one where these run faster one after the other.

    Its data is float32 (B, 3, H, W), or uint8 (B, H, W, 3), as the manifest says. MXNet joins convolutions with what
    follows them by itself (its subgraph backend MKLDNN is on for executors without gradients). bfloat16 and int8 are
    oneDNN's: elsewhere than on a CPU such a model runs in float32. CheckpointError where the symbol or the
    calibration does not fit: some thresholds fail at the first run alone, so that there is one here.
    """

    def __init__(self, model: Model, ctx: mx.Context, batch: int) -> None:
        """Allocates and runs once; batch: the images of each run."""
        alone = ctx.device_type == "cpu" and has_squeeze_excitation(model.symbol)
        self._batch = 1 if alone else batch
        shape = (self._batch, *model.manifest.image_shape)
        dtype = "uint8" if model.manifest.input_format == UINT8_NHWC else "float32"
        try:
            symbol, arg_params, aux_params = converted(model, ctx, shape)
            self._executor = bound(symbol, arg_params, aux_params, shape, dtype, ctx)
            self._det(np.zeros(shape, dtype))
        except (mx.base.MXNetError, RuntimeError, KeyError, ValueError, IndexError) as error:
            raise CheckpointError(
                f"MXNet cannot run this model as {model.manifest.dtype} ({last_line(error)}); export it again"
            ) from error

    def run(self, data: np.ndarray | mx.nd.NDArray) -> np.ndarray:
        """Det (B, N, 6) of as many images as were bound."""
        parts = [self._det(data[k : k + self._batch]) for k in range(0, len(data), self._batch)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _det(self, data: np.ndarray | mx.nd.NDArray) -> np.ndarray:
        return run(self._executor, data)[0]


def bind(model: Model, ctx: mx.Context, batch: int) -> BoundModel:
    """A model that runs `batch` images at a time in ctx."""
    return BoundModel(model, ctx, batch)


def fused_model(model: Model, images: int = 1) -> Fused:
    """A model's symbol as a CPU's int8 is made from it, for `images` at a time."""
    shape = (images, *model.manifest.image_shape)
    return fuse(*suit_onednn(model.symbol, model.arg_params, model.aux_params, shape))


def converted(model: Model, ctx: mx.Context, shape: tuple[int, ...]) -> tuple[mx.sym.Symbol, Params, Params]:
    """The symbol, arg_params and aux_params of a model as they run in ctx on inputs of this shape."""
    dtype, calibration = model.manifest.dtype, model.manifest.calibration
    params = model.arg_params, model.aux_params
    if ctx.device_type != "cpu":
        if dtype != FLOAT32:
            logger.warning("%s is for CPUs; on %s the model runs in float32", dtype, ctx)
        return model.symbol, *params
    symbol, arg_params, aux_params = suit_onednn(model.symbol, *params, shape)
    if calibration is not None:
        return *to_int8(fuse(symbol, arg_params, aux_params), calibration.thresholds, calibration.excluded), aux_params
    symbol, arg_params = pad_predictions(symbol, arg_params)
    if dtype == BFLOAT16 and not supports_bfloat16():
        logger.warning("bfloat16 needs a CPU with AVX-512; on this one the model runs in float32")
    elif dtype == BFLOAT16:
        symbol, arg_params = to_bfloat16(symbol, arg_params)
    return symbol, arg_params, aux_params


class MxnetEngine:
    """A model with reserved memory; a lock lets one thread at a time use it, as MXNet's executors demand."""

    name = MXNET

    def __init__(self, request: EngineRequest) -> None:
        """Loads and binds the model; errors as of model.folder.load_model."""
        model = load_model(request.path, request.epoch, **request.detection_options)
        device = request.device
        if device is None or isinstance(device, DeviceOptions):
            wanted = device or DeviceOptions()
            device = contexts(wanted.gpus, wanted.cpu, wanted.cpus)[0]
        self.manifest = model.manifest
        self._bound = bind(model, device, request.batch_size)
        self._lock = threading.Lock()

    def run(self, data: np.ndarray) -> np.ndarray:
        """Det (B, N, 6) of a batch of the size that was bound."""
        with self._lock:
            return self._bound.run(data)
