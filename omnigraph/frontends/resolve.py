"""Finds a model and its programs, by what MODEL names on the command line."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omnigraph.errors import OmniGraphError, UsageError, suggest
from omnigraph.frontends.hidden_bars import hidden_bars
from omnigraph.frontends.roles import with_roles
from omnigraph.frontends.text_files import TextFiles, text_files
from omnigraph.frontends.training_modes import TrainingModes, in_eval_mode
from omnigraph.program import Program

_FORMS = (
    "omninet, a folder of OmniNet or of Hugging Face, file.py:factory, package.module:factory, "
    "model.pt2 or model.onnx"
)
#: The endings of files that are models.
_FILES = (".onnx", ".pt2")


@dataclass(frozen=True)
class ModelSource:
    """A model's name, its programs (the default one first), and its configuration if it has one.

    Args:
        not_made: programs that one would expect and that are not made: why, by name.
        text: what it has for generating text.
    """

    name: str
    programs: tuple[Program, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    not_made: Mapping[str, str] = field(default_factory=dict)
    text: TextFiles = field(default_factory=TextFiles)

    def to_dict(self) -> dict[str, Any]:
        """What a manifest says of the model: its configuration, and the programs not made."""
        not_made = {"not_made": dict(self.not_made)} if self.not_made else {}
        return {"config": dict(self.config), **not_made}


def resolve(
    model: object,
    *,
    config: str | None = None,
    settings: Mapping[str, str] | None = None,
    inputs: Mapping[str, Any] | None = None,
    modes: TrainingModes | None = None,
) -> ModelSource:
    """Find a model and its programs. Their modules are put into eval mode.

    Args:
        model: "omninet"; "file.py:factory" or "package.module:factory", a callable without
            required arguments that gives ``(module, inputs)``, ``(module, inputs, dynamic)`` or a
            sequence of Programs; the path of an ONNX file, of a ``.pt2`` file that
            ``torch.export.save`` wrote, or of a folder that ``OmniNet.save`` or ``save_pretrained``
            of Hugging Face wrote; a ``torch.nn.Module`` with ``inputs``; or Programs themselves.
        config: of "omninet": tiny, small or seed.
        settings: of "omninet": fields of its configuration; of a factory: its keyword arguments;
            of a Hugging Face folder: the form of attention and of experts, and the dtype.
        inputs: example inputs by name: all of them where ``model`` is a module, and any of them
            where it is a file.
        modes: remembers the modes that the modules had.

    Raises:
        UsageError: there is no such model, factory, configuration or field.
        TraceError: the module does not run on its example inputs.
    """
    source = _resolve(model, config, settings, inputs, modes)
    from omnigraph.frontends.left_padding import ignores_left_padding

    if all(spec.role != "past" for program in source.programs for spec in program.inputs):
        return replace(source, text=replace(source.text, defaults={}))
    pads_left = any(ignores_left_padding(program) for program in source.programs)
    return replace(source, text=replace(source.text, pads_left=pads_left))


def _resolve(
    model: object,
    config: str | None,
    settings: Mapping[str, str] | None,
    inputs: Mapping[str, Any] | None,
    modes: TrainingModes | None,
) -> ModelSource:
    settings, modes = dict(settings or {}), modes or TrainingModes()
    if isinstance(model, str):
        check_named(model)
    if inputs and isinstance(model, str) and not is_model_path(model):
        raise UsageError(
            f"{model} makes its own example inputs",
            expected="model.onnx or model.pt2, where example inputs are given",
            found=", ".join(inputs),
            hint="a factory returns the module with its example inputs",
        )
    if model == "omninet":
        return _omninet(config, settings)
    if config is not None:
        raise UsageError("--config is for omninet only", found=config, hint="use --set key=value")
    if isinstance(model, os.PathLike) or (isinstance(model, str) and is_model_path(model)):
        return _from_path(Path(model), settings, inputs)
    if isinstance(model, str):
        return _from_factory(model, settings, modes)
    made = model if inputs is None else (model, inputs)
    programs = _as_programs(made, type(model).__name__, modes)
    return ModelSource(type(programs[0].module).__name__.lower(), programs)


def check_named(model: str) -> None:
    """Refuse a MODEL that names nothing, without importing torch.

    Raises:
        UsageError: it has no form of a model, or there is no such file.
    """
    if model == "omninet":
        return
    where, _, name = model.rpartition(":")
    if is_model_path(model):
        if not Path(model).exists():
            raise UsageError(f"There is no file {model}", hint=f"MODEL is {_FORMS}")
    elif not where or not name:
        raise UsageError(
            f"{model!r} is no model",
            expected=_FORMS,
            hint=suggest(
                model,
                ["omninet"],
                "a folder has a config.json; a factory gives (module, inputs): see "
                "`omnigraph export --help`",
            ),
        )
    elif where.endswith(".py"):
        _check_file(where)


def _check_file(where: str) -> None:
    if not Path(where).is_file():
        raise UsageError(f"There is no file {where}", hint=f"MODEL is {_FORMS}")


def _omninet(config: str | None, settings: Mapping[str, str]) -> ModelSource:
    from omnigraph.models import ConfigError, OmniNet, OmniNetConfig
    from omnigraph.models.programs import programs

    try:
        chosen = OmniNetConfig.from_overrides(settings, name=config or "seed")
    except ConfigError as error:
        first, _, rest = str(error).partition("\n")
        raise UsageError(first, hint=rest.removeprefix("hint: ") or None) from error
    model = OmniNet.from_seed(chosen, trained_like=True).eval()
    return ModelSource("omninet", programs(model), chosen.to_dict())


def is_model_path(text: str | os.PathLike[str]) -> bool:
    """Whether a text is the path of a model, by its ending, or by what is in the folder."""
    path = Path(text)
    return path.suffix in _FILES or (path / "config.json").is_file()


def _from_path(
    path: Path, settings: Mapping[str, str], inputs: Mapping[str, Any] | None
) -> ModelSource:
    if not path.exists():
        raise UsageError(f"There is no file {path}", hint=f"MODEL is {_FORMS}")
    if path.is_dir():
        return _from_folder(path, settings, inputs)
    if settings:
        raise UsageError(
            f"{path} has no settings",
            found=", ".join(settings),
            hint="--set is for targets (see `omnigraph targets`), omninet, factories and folders",
        )
    if path.suffix == ".onnx":
        from omnigraph.frontends.onnx_program import program_from_onnx

        program = program_from_onnx(path, inputs=inputs)
    elif path.suffix == ".pt2":
        from omnigraph.frontends.pt2_file import program_from_pt2

        program = program_from_pt2(path, inputs=inputs)
    else:
        raise UsageError(f"{path} is no model", expected=_FORMS, hint="`omnigraph export --help`")
    return ModelSource(path.stem, (program,))


def _from_folder(
    folder: Path, settings: Mapping[str, str], inputs: Mapping[str, Any] | None
) -> ModelSource:
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} is no model",
            expected="a folder with a config.json, which OmniNet.save and save_pretrained write",
            hint=f"MODEL is {_FORMS}",
        )
    if inputs:
        raise UsageError(
            f"The inputs of a folder's model are made here, and not given ({folder})",
            found=", ".join(inputs),
            hint="write a factory that gives the model and example inputs: file.py:factory",
        )
    text = text_files(folder)
    if _is_omninet(folder):
        return replace(_from_checkpoint(folder, settings), text=text)
    from omnigraph.frontends.hugging_face import model_from_folder

    found = model_from_folder(folder, settings=settings)
    name = folder.resolve().name
    return ModelSource(name, found.programs, found.config, found.not_made, text)


def _is_omninet(folder: Path) -> bool:
    """Whether a folder's config.json is of OmniNet: its fields, and no architecture."""
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # what reads it says what is wrong with it
    if not isinstance(fields, dict) or "architectures" in fields or "model_type" in fields:
        return False
    return "kind" in fields and "num_layers" in fields


def _from_checkpoint(folder: Path, settings: Mapping[str, str]) -> ModelSource:
    """An OmniNet that was saved; weights of half precision are widened, which is exact."""
    from omnigraph.models import ConfigError, OmniNet
    from omnigraph.models.checkpoint import CheckpointError
    from omnigraph.models.programs import programs

    if settings:
        raise UsageError(
            f"The OmniNet in {folder} has no settings",
            found=", ".join(settings),
            hint="its configuration goes with its weights; `omninet` with --set makes another",
        )
    try:
        model = OmniNet.load(folder).float().eval()
    except (CheckpointError, ConfigError) as error:
        first, _, rest = str(error).partition("\n")
        raise UsageError(first, hint=rest.removeprefix("hint: ") or None) from error
    return ModelSource(folder.resolve().name, programs(model), model.config.to_dict())


def find_callable(text: str, hint: str) -> Callable[..., Any]:
    """What "file.py:function" or "package.module:function" names.

    Args:
        hint: what such a function gives.

    Raises:
        UsageError: there is none.
    """
    where, _, name = text.rpartition(":")
    return _callable(where, name, hint)


def _from_factory(text: str, settings: Mapping[str, str], modes: TrainingModes) -> ModelSource:
    where, _, name = text.rpartition(":")
    factory = _callable(where, name, "MODEL names a function that gives (module, inputs)")
    try:
        with hidden_bars(sys.modules[factory.__module__]):
            made = factory(**settings)
    except OmniGraphError:
        raise
    except Exception as error:
        raise UsageError(
            f"The factory {text} failed",
            found=f"{type(error).__name__}: {error}",
            hint="it is called with the --set values as keyword arguments; --traceback shows where",
        ) from error
    return ModelSource(name, _as_programs(made, text, modes))


def _callable(where: str, attribute: str, hint: str) -> Callable[..., Any]:
    try:
        if where.endswith(".py"):
            path = Path(where)
            _check_file(where)
            # A name of its own: the file may be called like a module that is loaded already.
            name = f"omnigraph_model_{path.stem}"
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
    except OmniGraphError:
        raise
    except Exception as error:
        raise UsageError(
            f"{where} cannot be imported",
            found=f"{type(error).__name__}: {error}",
            hint="--traceback shows where it fails",
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise UsageError(
            f"{where} has no callable {attribute!r}",
            expected=", ".join(names[:8]) or "a function",
            hint=suggest(attribute, names, hint),
        )
    return factory


def _as_programs(made: object, where: str, modes: TrainingModes) -> tuple[Program, ...]:
    if isinstance(made, Program):
        made = (made,)
    if isinstance(made, Sequence) and made and all(isinstance(p, Program) for p in made):
        for program in made:
            _evaluate(program.module, modes)
        return tuple(with_roles(program) for program in made)
    if isinstance(made, Sequence) and len(made) in (2, 3) and isinstance(made[1], Mapping):
        from omnigraph.frontends.module import program_from_module

        _evaluate(made[0], modes)
        return (program_from_module(made[0], made[1], dynamic=made[2] if made[2:] else None),)
    raise UsageError(
        f"{where} gives no model",
        expected="(module, inputs by name), (module, inputs, dynamic), or Programs",
        found=type(made).__name__,
        hint='return model, {"input_ids": torch.randint(0, 1000, (2, 16))}',
    )


def _evaluate(module: object, modes: TrainingModes) -> None:
    """Put a module of the caller into eval mode; what is no module is refused elsewhere."""
    if callable(getattr(module, "modules", None)):
        modes.keep(module)  # type: ignore[arg-type]
        in_eval_mode(module)  # type: ignore[arg-type]
