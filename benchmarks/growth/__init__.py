"""`python -m benchmarks growth`: cost of a frozen trunk with and without an activation cache."""
