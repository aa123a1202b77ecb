"""Box algebra, coders, anchors and assigners in numpy; nothing here imports mxnet."""
