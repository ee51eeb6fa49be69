"""What rldk costs, measured against the least that recording can cost. Run: ``python -m benchmarks.cost``."""
