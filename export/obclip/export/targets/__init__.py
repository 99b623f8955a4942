"""Graphs for the accelerators of phones and laptops: what each provider takes, and rewrites towards it."""
