"""The folder that an experiment leaves."""
