"""CleanRL: its models, and the scripts beside them."""
