"""What runs a model on pixels: MXNet, ONNX Runtime, OpenVINO."""
