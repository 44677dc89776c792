"""Datasets of Minari: episodes in plain arrays, single frames, the teacher's values among the infos."""
