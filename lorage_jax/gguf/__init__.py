"""The names and the arithmetic of GGUF files and llama.cpp, for reading and for writing."""
