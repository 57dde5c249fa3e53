"""Model families: one file holds a family's body, criterion and variants."""
