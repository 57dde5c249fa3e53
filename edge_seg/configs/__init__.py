"""Recipes: one complete TOML file per experiment."""
