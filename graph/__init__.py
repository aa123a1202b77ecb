"""Symbols rewritten: folded, narrowed, padded, fitted to oneDNN."""
