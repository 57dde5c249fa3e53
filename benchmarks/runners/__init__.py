"""Runners: one file is one way to run a file on a device."""
