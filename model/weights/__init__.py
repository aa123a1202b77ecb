"""Weights of other projects: readers of their files, and tables from their parameter names to this project's.

A source's module has `read(path) -> {name of the source: array}` and `rename(arrays, network, options) -> (arg, aux)`,
or several functions like it where projects share a file format (pytorch.py). Names that a table does not know keep the
source's name, so that the report (fit.py) calls them unused. No file is trusted: lengths are checked against the file
before anything is allocated, pickles are read by safe_pickle.py alone and no foreign symbol is handed to MXNet.
"""
