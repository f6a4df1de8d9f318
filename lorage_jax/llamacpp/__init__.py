"""Files for llama.cpp (GGUF): models with their tokenizers, and adapters."""
