"""What a student is made of: networks, losses, targets and optimizers."""
