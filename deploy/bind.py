"""A model made ready to run: its symbol in the number format of its manifest, with memory and weights."""

import logging

from config.errors import CheckpointError
from config.runtime import mx
from deploy.bfloat16 import to_bfloat16
from deploy.channels import fill_blocks
from deploy.int8 import fuse, to_int8
from deploy.layouts import for_onednn
from deploy.manifest import BFLOAT16, FLOAT32, UINT8_NHWC
from deploy.model_folder import Model
from deploy.symbol_check import last_line
from train.params_file import Params

logger = logging.getLogger(__name__)


def bind(model: Model, ctx: mx.Context, batch: int) -> mx.executor.Executor:
    """An inference executor of `batch` images: write arg_dict["data"], then forward(is_train=False)[0] is det.

    `data` is float32 (B, 3, H, W), or uint8 (B, H, W, 3), as the manifest says. MXNet joins convolutions with what
    follows them by itself (its subgraph backend MKLDNN is on for executors without gradients). bfloat16 and int8 are
    oneDNN's: elsewhere than on a CPU such a model runs in float32. CheckpointError where the symbol or the
    calibration does not fit.
    """
    types = {"data": "uint8" if model.manifest.input_format == UINT8_NHWC else "float32"}
    try:
        symbol, arg_params = converted(model, ctx)
        executor = symbol.simple_bind(ctx, grad_req="null", type_dict=types, data=(batch, *model.manifest.image_shape))
        executor.copy_params_from(arg_params, model.aux_params)
    except (mx.base.MXNetError, RuntimeError) as error:
        raise CheckpointError(
            f"MXNet cannot run this model as {model.manifest.dtype} ({last_line(error)}); export it again"
        ) from error
    return executor


def converted(model: Model, ctx: mx.Context) -> tuple[mx.sym.Symbol, Params]:
    """The symbol and arg_params of a model as they run in ctx."""
    dtype, calibration = model.manifest.dtype, model.manifest.calibration
    if ctx.device_type != "cpu":
        if dtype != FLOAT32:
            logger.warning("%s is for CPUs; on %s the model runs in float32", dtype, ctx)
        return model.symbol, model.arg_params
    if calibration is not None:
        return to_int8(fuse(model.symbol, model.arg_params, model.aux_params), calibration)
    symbol, arg_params = fill_blocks(for_onednn(model.symbol), model.arg_params)
    return to_bfloat16(symbol, arg_params) if dtype == BFLOAT16 else (symbol, arg_params)
