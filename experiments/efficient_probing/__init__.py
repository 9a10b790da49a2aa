"""Efficient probing: frozen encoders scored through a few attentive queries."""
