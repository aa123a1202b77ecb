"""What a run is: options in groups, the command line and presets that set them, hyper-parameter files."""
