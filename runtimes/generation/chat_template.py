"""Renders a chat template in a sandbox, as transformers does: jinja2 with nothing it could harm."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from omnigraph.errors import ArtifactError, DeviceError, OmniGraphError, UsageError

if TYPE_CHECKING:
    import jinja2


def render(template: str, values: Mapping[str, Any]) -> str:
    """The text of a template with some values.

    Raises:
        DeviceError: the package `jinja2` is not installed.
        ArtifactError: the template is no template, or fails.
        UsageError: the template refuses the messages.
    """
    try:
        return _compiled(template).render(**values)
    except OmniGraphError:
        raise
    except Exception as error:  # whatever a template of someone else raises
        raise ArtifactError(
            "The chat template of the artifact fails",
            expected="a template that takes messages with a role and a content",
            found=f"{type(error).__name__}: {error}",
            hint="look at chat_template.jinja, or chat_template in tokenizer_config.json; or make "
            "the text yourself, and give it with --prompt",
        ) from error


@functools.lru_cache(8)
def _compiled(template: str) -> jinja2.Template:
    try:
        import jinja2
        import jinja2.ext
        import jinja2.sandbox
    except ImportError as error:
        raise DeviceError(
            "A chat needs the package jinja2, which is not installed",
            hint="pip install 'omnigraph[generate]'",
        ) from error

    class Generation(jinja2.ext.Extension):
        """``{% generation %}``, which marks what a model says for training, and prints it."""

        tags = {"generation"}  # noqa: RUF012 (jinja2's own form)

        def parse(self, parser: Any) -> Any:
            """Parses the body, which stands as if there were no mark."""
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the escapes of HTML that jinja2's own filter makes."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> None:
    raise UsageError(
        "The chat template refuses these messages",
        expected="messages in the order that the model was trained on",
        found=str(message),
        hint="most models want user and assistant in turn, and a system message first or none",
    )
