"""LoRA-Gen itself: meta tokens, router, pool of experts, cards, merging, and their files."""
