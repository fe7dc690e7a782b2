"""A table of Hugging Face models at tiny sizes; `hugging_face_programs` makes Programs of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: What transformers calls the two ways to compute attention.
FORMS = ("eager", "sdpa")

_SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 96,
}
_SEQ2SEQ = {
    "vocab_size": 61,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 96,
    "dropout": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
_GROUPED = {**_SMALL, "num_key_value_heads": 2}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@dataclass(frozen=True)
class Model:
    """One architecture at a tiny size.

    Args:
        kind: the class in transformers.
        config: the class of its configuration, and its fields.
        sites: how many times one call of the model attends.
        inputs: what it is given: "text", "text without mask", "two texts", "image" or "sound".
        forms: the ways to compute attention that the class has.
        slow: left out of the fast suite.
    """

    kind: str
    config: str
    fields: Mapping[str, Any]
    sites: int
    inputs: str = "text"
    forms: tuple[str, ...] = FORMS
    slow: bool = True
    output: str = field(default="")


MODELS: dict[str, Model] = {
    "bert": Model("BertModel", "BertConfig", _SMALL, 2, slow=False),
    "gpt2": Model(
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96, **_SPECIAL},
        2,
        slow=False,
    ),
    "llama": Model("LlamaForCausalLM", "LlamaConfig", {**_GROUPED, **_SPECIAL}, 2, slow=False),
    "t5": Model(
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": 61,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
        6,
        "two texts",
        slow=False,
    ),
    "bart": Model(
        "BartForConditionalGeneration", "BartConfig", _SEQ2SEQ, 6, "two texts", slow=False
    ),
    "bloom": Model(
        "BloomForCausalLM",
        "BloomConfig",
        {"vocab_size": 61, "hidden_size": 32, "n_layer": 2, "n_head": 4, **_SPECIAL},
        2,
        forms=("eager",),
        slow=False,
    ),
    "distilbert": Model(
        "DistilBertModel",
        "DistilBertConfig",
        {"vocab_size": 61, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
        2,
    ),
    "roberta": Model("RobertaModel", "RobertaConfig", {**_SMALL, "pad_token_id": 1}, 2),
    "electra": Model("ElectraModel", "ElectraConfig", {**_SMALL, "embedding_size": 16}, 2),
    "albert": Model("AlbertModel", "AlbertConfig", {**_SMALL, "embedding_size": 16}, 2),
    "mpnet": Model("MPNetModel", "MPNetConfig", _SMALL, 2, forms=("eager",)),
    "xlm-roberta": Model("XLMRobertaModel", "XLMRobertaConfig", {**_SMALL, "pad_token_id": 1}, 2),
    "modernbert": Model(
        "ModernBertModel",
        "ModernBertConfig",
        {**_SMALL, **_SPECIAL, "local_attention": 6, "cls_token_id": 1, "sep_token_id": 2},
        2,
    ),
    "opt": Model(
        "OPTForCausalLM",
        "OPTConfig",
        {
            "vocab_size": 61,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 64,
            "max_position_embeddings": 96,
            "word_embed_proj_dim": 32,
            **_SPECIAL,
        },
        2,
    ),
    "gpt-neo": Model(
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        {
            "vocab_size": 61,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
            "max_position_embeddings": 96,
            **_SPECIAL,
        },
        2,
        forms=("eager",),
    ),
    "gpt-neox": Model("GPTNeoXForCausalLM", "GPTNeoXConfig", {**_SMALL, **_SPECIAL}, 2),
    "gpt-j": Model(
        "GPTJForCausalLM",
        "GPTJConfig",
        {
            "vocab_size": 61,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 96,
            "rotary_dim": 4,
            **_SPECIAL,
        },
        2,
        forms=("eager",),
    ),
    "mistral": Model(
        "MistralForCausalLM", "MistralConfig", {**_GROUPED, **_SPECIAL, "sliding_window": 4}, 2
    ),
    "qwen2": Model("Qwen2ForCausalLM", "Qwen2Config", {**_GROUPED, **_SPECIAL}, 2),
    "qwen3": Model("Qwen3ForCausalLM", "Qwen3Config", {**_GROUPED, **_SPECIAL, "head_dim": 8}, 2),
    "gemma": Model("GemmaForCausalLM", "GemmaConfig", {**_GROUPED, **_SPECIAL, "head_dim": 8}, 2),
    "gemma2": Model(
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {
            **_GROUPED,
            **_SPECIAL,
            "head_dim": 8,
            "sliding_window": 4,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 10.0,
            "query_pre_attn_scalar": 8,
        },
        2,
        forms=("eager",),  # its sdpa form leaves out the softcap: another model
    ),
    "gemma3": Model(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {
            **_GROUPED,
            **_SPECIAL,
            "head_dim": 8,
            "sliding_window": 4,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        2,
    ),
    "phi": Model("PhiForCausalLM", "PhiConfig", {**_SMALL, **_SPECIAL}, 2),
    "phi3": Model("Phi3ForCausalLM", "Phi3Config", {**_GROUPED, **_SPECIAL}, 2),
    "olmo2": Model("Olmo2ForCausalLM", "Olmo2Config", {**_GROUPED, **_SPECIAL}, 2),
    "granite": Model("GraniteForCausalLM", "GraniteConfig", {**_GROUPED, **_SPECIAL}, 2),
    "stablelm": Model("StableLmForCausalLM", "StableLmConfig", {**_GROUPED, **_SPECIAL}, 2),
    "cohere": Model("CohereForCausalLM", "CohereConfig", {**_GROUPED, **_SPECIAL}, 2),
    "mpt": Model(
        "MptForCausalLM",
        "MptConfig",
        {"vocab_size": 61, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 96},
        2,
        forms=("eager",),
    ),
    "falcon": Model(
        "FalconForCausalLM",
        "FalconConfig",
        {
            "vocab_size": 61,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 96,
            **_SPECIAL,
        },
        2,
    ),
    "falcon-alibi": Model(
        "FalconForCausalLM",
        "FalconConfig",
        {
            "vocab_size": 61,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "alibi": True,
            **_SPECIAL,
        },
        2,
    ),
    "gpt-bigcode": Model(
        "GPTBigCodeForCausalLM",
        "GPTBigCodeConfig",
        {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96, **_SPECIAL},
        2,
    ),
    "pegasus": Model("PegasusForConditionalGeneration", "PegasusConfig", _SEQ2SEQ, 6, "two texts"),
    "marian": Model(
        "MarianMTModel", "MarianConfig", {**_SEQ2SEQ, "decoder_vocab_size": 61}, 6, "two texts"
    ),
    "mbart": Model("MBartForConditionalGeneration", "MBartConfig", _SEQ2SEQ, 6, "two texts"),
    "m2m100": Model(
        "M2M100ForConditionalGeneration",
        "M2M100Config",
        {**_SEQ2SEQ, "scale_embedding": False},
        6,
        "two texts",
    ),
    "vit": Model(
        "ViTModel",
        "ViTConfig",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "image_size": 16,
            "patch_size": 4,
        },
        2,
        "image",
    ),
    "clip": Model(
        "CLIPTextModel", "CLIPTextConfig", {**_SMALL, **_SPECIAL, "projection_dim": 32}, 2
    ),
    "whisper": Model(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            **_SEQ2SEQ,
            "num_mel_bins": 8,
            "max_source_positions": 24,
            "max_target_positions": 96,
        },
        6,
        "sound",
    ),
    "deberta-v2": Model(
        "DebertaV2Model",
        "DebertaV2Config",
        {
            **_SMALL,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 8,
        },
        2,
        forms=("eager",),
    ),
}
