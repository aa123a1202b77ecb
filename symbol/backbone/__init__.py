"""Backbones: functions that the tables of the families (symbol/detector/) name."""
