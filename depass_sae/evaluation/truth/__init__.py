"""Transformers whose mechanism is known, and which rule answers which question about them exactly (``make truth``)."""
