"""An HTTP service over Detector; started by tools/serve.py."""
