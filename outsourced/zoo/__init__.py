"""Recipes that train the embedded priors on public data; their weights and cards."""
