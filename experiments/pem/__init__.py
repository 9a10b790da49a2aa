"""Prototype-based efficient MaskFormer: each query reads one pixel per head."""
