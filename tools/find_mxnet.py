"""Makes `import mxnet as mx` work in a script, as in the classic projects: import this module before it.

    import tools.find_mxnet
    import mxnet as mx

mxnet is then set up and loaded as for all commands (machine/runtime.py): OpenMP threads, the names that numpy has
removed, CUDA libraries. InstallError says what is missing.
"""

from machine.runtime import load_mxnet

load_mxnet()
