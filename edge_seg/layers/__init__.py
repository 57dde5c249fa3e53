"""Building blocks of every body: modules only, so that graph rewrites and quantisation find each operation."""
