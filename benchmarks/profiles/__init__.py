"""Device profiles: one TOML file each, loaded by `edge_seg.benchmarks.profile`."""
