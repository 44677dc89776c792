"""C99: a policy as one file, rendered from its numbers, read back as numbers, compiled and called."""
