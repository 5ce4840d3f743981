"""Text to ids to frozen vectors: vocabulary, tokenizer, glyphs, table, codes (free of torch)."""
