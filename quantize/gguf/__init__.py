"""GGUF files: tensor types and the streaming writer."""
