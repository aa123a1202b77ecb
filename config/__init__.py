"""What a run is: options, presets, errors, process set-up."""
