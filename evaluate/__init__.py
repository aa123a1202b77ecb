"""Accuracy of detectors: VOC metrics, evaluate_net, reports."""
