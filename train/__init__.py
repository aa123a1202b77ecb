"""Training: the driver, the Module, schedules, metrics, checkpoints, callbacks."""
