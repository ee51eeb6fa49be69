"""Which faults rldk names in real TRL runs, how soon, and at how many false alarms. Run: ``python -m benchmarks.detection``."""
