"""Environments, actions, and playing: what every policy meets, whoever made it."""
