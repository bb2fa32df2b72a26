"""Captioned pictures for the demo model."""
