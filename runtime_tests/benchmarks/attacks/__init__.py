"""Attacks on what leaves the device: `python -m runtime_tests.benchmarks.attacks`.

One file an attack, each with `run(settings) -> list[Row]`; `row` says what a row holds, `settings` how much is run.
"""
