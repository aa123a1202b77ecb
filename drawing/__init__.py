"""Pictures: boxes on images, heat maps, curves."""
