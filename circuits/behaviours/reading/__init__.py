"""Reading prompts: files of several layouts, and batches of token ids."""
