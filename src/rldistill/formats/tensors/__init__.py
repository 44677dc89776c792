"""Files of named tensors: safetensors, NumPy, state dicts of PyTorch."""
