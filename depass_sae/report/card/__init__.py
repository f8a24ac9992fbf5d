"""A feature over some prompts: where it fires, what drives it, what it writes, what is near it."""
