"""What every part may use: errors, files that are whole or not there, JSON that is checked."""
