"""Models of Hugging Face folders and GGUF files: loading, checking, saving, PEFT adapters."""
