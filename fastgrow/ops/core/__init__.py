"""What operations share: choosing an implementation, checks, dtypes, operators with gradients."""
