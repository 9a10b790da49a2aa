"""Conditional cross attention: one network, one embedding space per attribute."""
