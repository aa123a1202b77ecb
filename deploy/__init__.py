"""Exports: model folders with their number formats, ONNX files."""
