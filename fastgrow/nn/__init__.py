"""Neural network modules built on `fastgrow.ops`, the decoder, and text generation."""

from fastgrow.nn.attention import CausalSelfAttention
from fastgrow.nn.block import Block
from fastgrow.nn.cache import KVCache, LayerCache, repeat_cache
from fastgrow.nn.config import DecoderConfig
from fastgrow.nn.decoder import Decoder
from fastgrow.nn.embedding import FrozenEmbedding
from fastgrow.nn.generate import GenerationMixin, GenerationOptions, generate, stream
from fastgrow.nn.head import LMHead
from fastgrow.nn.language_model import Cache, LanguageModel, SubstrateLike
from fastgrow.nn.lora import LoRALinear
from fastgrow.nn.loss import LinearCrossEntropyLoss
from fastgrow.nn.mlp import MLP
from fastgrow.nn.norm import LayerNorm, RMSNorm
from fastgrow.nn.rotary import RotaryTable

__all__ = [
    "MLP",
    "Block",
    "Cache",
    "CausalSelfAttention",
    "Decoder",
    "DecoderConfig",
    "FrozenEmbedding",
    "GenerationMixin",
    "GenerationOptions",
    "KVCache",
    "LMHead",
    "LanguageModel",
    "LayerCache",
    "LayerNorm",
    "LinearCrossEntropyLoss",
    "LoRALinear",
    "RMSNorm",
    "RotaryTable",
    "SubstrateLike",
    "generate",
    "repeat_cache",
    "stream",
]
