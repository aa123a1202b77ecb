"""Process set-up and the only import of mxnet: threads, numpy aliases, CUDA libraries, then `import mxnet`."""

import os

import numpy as np

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
os.environ.setdefault("MXNET_UPDATE_ON_KVSTORE", "0")
for _alias in ("bool", "int", "float", "object"):
    if _alias not in np.__dict__:
        setattr(np, _alias, __builtins__[_alias] if isinstance(__builtins__, dict) else getattr(__builtins__, _alias))

import mxnet as mx  # noqa: E402

__all__ = ["mx"]
