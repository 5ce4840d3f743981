"""Text to ids to frozen vectors: vocabulary, tokenizer, glyphs, table, codes (free of torch)."""

from fastgrow.substrate.substrate import Substrate
from fastgrow.substrate.tokenizer import Tokenizer
from fastgrow.substrate.vocabulary import Vocabulary

__all__ = ["Substrate", "Tokenizer", "Vocabulary"]
