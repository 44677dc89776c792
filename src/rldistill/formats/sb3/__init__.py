"""Stable-Baselines3: its zip files."""
