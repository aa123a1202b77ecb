"""Commands around training: data preparation, checks, demonstrations."""

import importlib
import sys

if sys.argv[0] == "-m":  # python -m tools.NAME: a missing package is one sentence
    importlib.import_module("common.first")
