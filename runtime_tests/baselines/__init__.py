"""Simpler or weaker ways to do the same job, to be measured beside the project's own."""
