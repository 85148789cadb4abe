"""Measurements, not tests: `python -m benchmarks`. No assertion here ever fails a build."""
