"""The model families: a table each, and here all of them."""

from ..adapter import Family
from .gemma import GEMMA, GEMMA3
from .gpt2 import GPT2
from .gpt_neox import GPT_NEOX
from .gpt_oss import GPT_OSS
from .llama import LLAMA
from .qwen3_5 import QWEN3_5, QWEN3_5_WHOLE

FAMILIES: tuple[Family, ...] = (LLAMA, GEMMA, GEMMA3, GPT2, GPT_NEOX, GPT_OSS, QWEN3_5, QWEN3_5_WHOLE)
