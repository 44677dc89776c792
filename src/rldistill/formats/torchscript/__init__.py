"""TorchScript programs."""
