"""From annotations to records to batches."""
