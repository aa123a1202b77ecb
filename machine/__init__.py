"""What the machine offers: mxnet and OpenCV made ready, threads, GPUs, memory, signals."""
