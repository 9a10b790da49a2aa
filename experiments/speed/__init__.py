"""Speed beside peers: one script per operation, ratios out."""
