"""Studies: many runs of one plan, compared with each other and with their teachers."""
