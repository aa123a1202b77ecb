"""A training script as users of the classic projects have one: their names, plain mxnet, nothing of train/training.py.

python own_trainer.py '{"train_path": ..., "val_path": ..., "prefix": ..., ...}'
"""

import json  # noqa: I001 - find_mxnet comes first
import logging
import re
import sys

import tools.find_mxnet  # noqa: F401 - before mxnet, which it sets up
import mxnet as mx  # noqa: TID251 - as the scripts of users have it

from config.config import cfg
from dataset.iterator import DetRecordIter
from evaluate.eval_metric import MApMetric, VOC07MApMetric
from symbol.symbol_factory import get_symbol_train
from train.epoch_end import seed_epoch
from train.metric import MultiBoxMetric
from train.train_net import convert_pretrained, get_lr_scheduler

NUM_CLASSES = 3
MEANS = (123, 117, 104)
SIDE = 64


def load_start(net, prefix, pretrained, epoch, resume, finetune):
    """(weights, auxiliary states, first epoch, frozen by fine-tuning) of one of the four starts."""
    if resume > 0:
        _, args, auxs = mx.model.load_checkpoint(prefix, resume)
        return args, auxs, resume, []
    if finetune > 0:
        _, args, auxs = mx.model.load_checkpoint(prefix, finetune)
        shapes = net.simple_bind(mx.cpu(), data=(1, 3, SIDE, SIDE), label=(1, 1, 5), grad_req="null").arg_dict
        for name in [name for name, array in shapes.items() if name in args and array.shape != args[name].shape]:
            del args[name]
        return args, auxs, finetune, [name for name in shapes if name in args and "pred" not in name]
    if pretrained:
        _, args, auxs = mx.model.load_checkpoint(pretrained, epoch)
        return convert_pretrained(pretrained, args), auxs, 0, []
    return None, None, 0, []


def frozen_names(net, pattern):
    """The parameters that a pattern matches from their first letter."""
    return [name for name in net.list_arguments() if re.match(pattern, name)] if pattern else []


def train(
    train_path,
    val_path,
    prefix,
    *,
    batch_size=8,
    num_example=22,
    end_epoch=2,
    resume=-1,
    finetune=-1,
    pretrained="",
    epoch=1,
    freeze="",
    lr=0.01,
    lr_steps="1, 2",
    monitor=0,
    num_classes=NUM_CLASSES,
    network="mobilenet",
    cpus=1,
    voc07=True,
):
    """Trains as the classic train_net does; the random numbers of each epoch have a seed of their own."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    ctx = [mx.cpu(k) for k in range(cpus)]
    common = {"mean_pixels": MEANS, "label_pad_width": 350, "path_imglist": ""}
    net = get_symbol_train(
        network, SIDE, num_classes=num_classes, nms_thresh=0.45, force_suppress=False, nms_topk=400, width=0.125
    )
    args, auxs, first, fixed = load_start(net, prefix, pretrained, epoch, resume, finetune)
    fixed = fixed or frozen_names(net, freeze if args else "")
    train_iter = DetRecordIter(train_path, batch_size, (3, SIDE, SIDE), epoch=first, **common, **cfg.train)
    val_iter = DetRecordIter(val_path, batch_size, (3, SIDE, SIDE), **common, **cfg.valid)
    mod = mx.mod.Module(net, label_names=("label",), context=ctx, fixed_param_names=fixed)
    rate, scheduler = get_lr_scheduler(lr, lr_steps, 0.1, num_example, batch_size, first)
    metric = VOC07MApMetric if voc07 else MApMetric
    seed_epoch(cfg.train.seed, first)
    mod.fit(
        train_iter,
        val_iter,
        eval_metric=MultiBoxMetric(),
        validation_metric=metric(0.5, False, ["red", "green", "blue"][:num_classes], pred_idx=3),
        # Module reads the moving averages at the end of an epoch without waiting for the last batch (mxnet 1.9.1)
        batch_end_callback=[mx.callback.Speedometer(batch_size, frequent=2), lambda param: mx.nd.waitall()],
        epoch_end_callback=[mx.callback.do_checkpoint(prefix), lambda done, *_: seed_epoch(cfg.train.seed, done + 1)],
        optimizer="sgd",
        optimizer_params={
            "learning_rate": rate,
            "momentum": 0.9,
            "wd": 0.0005,
            "lr_scheduler": scheduler,
            "clip_gradient": None,
            "rescale_grad": 1.0 / len(ctx),
        },
        begin_epoch=first,
        num_epoch=end_epoch,
        initializer=mx.init.Xavier(),
        arg_params=args,
        aux_params=auxs,
        allow_missing=True,
        monitor=mx.mon.Monitor(monitor, pattern="conv_1_.*weight") if monitor else None,
    )


if __name__ == "__main__":
    train(**json.loads(sys.argv[1]))
