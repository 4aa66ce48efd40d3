"""Dictionaries, correlations, events, peaks, drift and the store."""
