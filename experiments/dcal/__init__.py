"""Dual cross-attention learning: two cross-attentions that train beside self-attention."""
