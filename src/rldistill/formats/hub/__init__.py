"""The Hugging Face Hub: download and upload."""
