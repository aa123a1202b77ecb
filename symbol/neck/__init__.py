"""What lies between bodies and heads."""
