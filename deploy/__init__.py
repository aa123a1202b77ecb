"""Exported model folders."""
