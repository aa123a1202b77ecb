"""Commands around training: data preparation, checks, demonstrations."""
