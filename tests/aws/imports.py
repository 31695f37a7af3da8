"""ImportSnapshot."""
