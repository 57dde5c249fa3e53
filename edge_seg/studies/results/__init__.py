"""The page of results, what the README shows of it and its figures, all from committed documents: `make results`."""
