"""The verbs of the command, one module or folder each."""
