"""What GGUF files and llama.cpp call things and how they compute, for reading and for writing."""
