"""The score thresholds that an exported model gets: from a file of evaluate.py, or found on a record."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import DataError, OptionError
from evaluate.thresholds import choose, parse_requirement, sentences

if TYPE_CHECKING:
    from deploy.main import DeployOptions
    from model.folder import Model

BATCH = 4  # images of a batch here
logger = logging.getLogger(__name__)


def with_thresholds(model: "Model", options: "DeployOptions") -> "Model":
    """The model with the thresholds of --thresholds, or those that its own detections on --eval-rec give.

    OptionError where the record does not show what --require asks for.
    """
    names = model.manifest.class_names
    if options.thresholds:
        found = read_thresholds(options.thresholds, names)
    elif options.eval_rec:
        found = thresholds_on(model, options.eval_rec, options.require)
    else:
        return model
    return dataclasses.replace(model, manifest=dataclasses.replace(model.manifest, thresholds=found))


def thresholds_on(model: "Model", record: str, require: Sequence[str] = ()) -> dict[str, float]:
    """The thresholds of the classes on a record, by the model in MXNet: as required, otherwise those of the best F1."""
    from deploy.precision import measured_by
    from engines.mxnet_engine import bind
    from evaluate.hits import voc_hits
    from machine.runtime import mx

    names = model.manifest.class_names
    requirements = [parse_requirement(text, names) for text in require]
    metric = measured_by(bind(model, mx.cpu(), BATCH).run, model.manifest, record, BATCH)
    hits = voc_hits("voc", *metric.rows(), names, metric.rule, metric.global_num_inst)
    choice = choose(hits, requirements)
    for sentence in sentences(choice):
        logger.info(sentence)
    missing = next((name for name, value in choice.thresholds.items() if value is None), "")
    if missing:
        raise OptionError(
            f"--require: {record} shows no threshold of {missing} that keeps what is required, as the lines above say; "
            "require less, or measure more images"
        )
    return {name: value for name, value in choice.thresholds.items() if value is not None}


def read_thresholds(path: str, class_names: Sequence[str] | None = None) -> dict[str, float]:
    """The thresholds in a file of evaluate.py --json, of these classes.

    DataError for a file without any, or one whose classes are others; OptionError where one was required and not shown.
    """
    try:
        content = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"--thresholds {path}: cannot be read ({error}); give a file of evaluate.py --json") from error
    found = content.get("thresholds") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not found:
        raise DataError(f"--thresholds {path}: there are no thresholds in it; give the file of evaluate.py --json")
    missing = [name for name, value in found.items() if value is None]
    if missing:
        raise OptionError(
            f"--thresholds {path}: {missing[0]} has none, as the images did not show what was required; see its "
            "requirements, and evaluate with others"
        )
    wrong = [name for name, value in found.items() if not isinstance(value, float | int) or not 0 <= value <= 1]
    if wrong or (class_names is not None and set(found) != set(class_names)):
        raise DataError(f"--thresholds {path}: they are not numbers from 0 to 1 of the model's classes; evaluate again")
    return {name: float(value) for name, value in found.items()}
