"""Backbones: one file each, listed in symbol/registry.py."""
