"""Detector, the command demo.py, videos and the HTTP service."""
