"""Latency: runners, statistics, device profiles and the report."""
