"""Options and bodies of verbs that are too long for `edge_seg.cli`."""
