"""Measurements of the paths that users take. Figures compare within one run: machines differ and are shared."""
