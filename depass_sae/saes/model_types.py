"""Which kind of model a name means, and what of it decides the meaning of a hook's name.

SAEs' files and sae-lens's registry name models as TransformerLens does (``gpt2-small``) or by a hub id; what a hook
means may depend on how the model is built. A name that begins like none here is not guessed.
"""

# How a model's name begins, without its owner: transformers' model_type. The longest beginning decides.
BEGINNINGS = {
    "deepseek-r1-distill-llama": "llama",
    "deepseek-r1-distill-qwen": "qwen2",
    "gemma-2b": "gemma",
    "gemma-7b": "gemma",
    "gemma-2-": "gemma2",
    "gemma-3-": "gemma3",
    "gemma-3-270m": "gemma3_text",
    "gemma-3-1b": "gemma3_text",
    "gpt-oss-": "gpt_oss",
    "gpt2": "gpt2",
    "llama-2-": "llama",
    "llama-3": "llama",
    "meta-llama-3": "llama",
    "mistral-7b": "mistral",
    "pythia-": "gpt_neox",
    "qwen2": "qwen2",
    "qwen3-": "qwen3",
    "qwen3-30b-a3b": "qwen3_moe",
    "qwen3-235b-a22b": "qwen3_moe",
    "qwen3.5-": "qwen3_5",
    "qwen3.5-35b-a3b": "qwen3_5_moe",
    "qwen3.5-122b-a10b": "qwen3_5_moe",
    "qwen3.5-397b-a17b": "qwen3_5_moe",
    "smollm2": "llama",
}
# Positions that are learned and added after the embedding: what the first layer reads is not the embedding alone.
LEARNED_POSITIONS = frozenset({"gpt2"})
# Norms on what a sublayer puts out, too: transformers' module names for the MLP's norm mean something else there.
POST_NORMED = frozenset({"gemma2", "gemma3", "gemma3_text"})
# Attention and MLP both read the block's input: the residual stream between them exists nowhere.
PARALLEL = frozenset({"gpt_neox"})


def model_type_of(name: str | None) -> str | None:
    """transformers' ``model_type`` of a model by its name; None where that is not known."""
    last = (name or "").rsplit("/", 1)[-1].lower()
    fitting = [beginning for beginning in BEGINNINGS if last.startswith(beginning)]
    return BEGINNINGS[max(fitting, key=len)] if fitting else None
