"""What computes: the only importers of llama_cpp.  `base` says what each of them must do."""
