"""Several models that speak as one: rules and ensembles."""
