"""Multi-variate parallel attention: signals whose subjects differ in their channels."""
