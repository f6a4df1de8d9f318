"""Files and folders of any kind: safetensors, GGUF, manifests, journals, writing without loss."""
