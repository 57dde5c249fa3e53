"""One file per form of output; each registers one parser in `edge_seg.benchmarks.parser.PARSERS`."""
