"""Features of one prompt from all sides: what was found, and everything that it was found in."""
