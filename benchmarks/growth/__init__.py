"""`python -m benchmarks growth`: what the frozen trunk costs, and what keeping its output saves."""
