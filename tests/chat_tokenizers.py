"""A small tokenizer with a chat template."""

from __future__ import annotations

from pathlib import Path

import tokenizers
from transformers import PreTrainedTokenizerFast

TEMPLATE = """\
{{ bos_token }}{%- for message in messages %}
  {%- if message.role not in ("system", "user", "assistant") %}
    {{- raise_exception("no role " + message.role) }}
  {%- endif %}
{{ message.role }}: {% if message.role == "assistant" %}{% generation %}
{{ message.content | trim }}
{%- endgeneration %}{% else %}{{ message.content }}{% endif %}
{% endfor %}
{% if tools %}{{ tools | tojson }}{% endif %}
{% if add_generation_prompt %}assistant:{% endif %}"""


def make_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer of 61 tokens or fewer: 58 characters of bytes, and three special."""
    special = ["<pad>", "<s>", "</s>"]
    letters = " \nabcdefghijklmnopqrstuvwxyz:.,<>?!é漢"
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    table = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_ = dict.fromkeys(c for text in letters for c, _ in [*table.pre_tokenize_str(text)])
    names = dict.fromkeys([*special, *(c for word in bytes_ for c in word), "th", "in", "an"])
    assert set("".join(bytes_)) <= set(alphabet)
    vocabulary = {token: number for number, token in enumerate(names)}
    assert len(vocabulary) <= 61
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, [("t", "h"), ("i", "n"), ("a", "n")])
    )
    made.pre_tokenizer = table
    made.decoder = tokenizers.decoders.ByteLevel()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    whole = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    whole.chat_template = TEMPLATE
    whole.save_pretrained(folder)
