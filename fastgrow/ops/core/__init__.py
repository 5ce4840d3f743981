"""Code that all operations share: dispatch, argument checks, dtypes, operators with gradients."""
