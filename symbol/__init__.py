"""Networks as functions from Symbol to Symbol; symbol_factory is the door."""
