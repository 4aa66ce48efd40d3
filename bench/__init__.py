"""Measurements: ratios taken in one process, side by side. `python -m bench [NAME …]` runs them and prints Markdown tables."""
