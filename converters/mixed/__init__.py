"""Which layers int8 hurts, and the cheapest mix of precisions that meets a budget."""
