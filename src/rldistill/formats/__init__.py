"""Files of other tools: of each format the reader beside the writer."""
