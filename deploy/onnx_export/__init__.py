"""Detection symbols as ONNX models, decoding and non-maximum suppression included."""
