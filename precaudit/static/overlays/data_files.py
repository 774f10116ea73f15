"""What a script reads from files of its project: YAML, JSON and TOML, by literal paths, OmegaConf's and Hydra's too."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from precaudit.foreign import ForeignError, parse_json, parse_toml, parse_yaml
from precaudit.static.files.configs import LARGEST_CONFIG
from precaudit.static.language import calls
from precaudit.static.language.values import (
    Class,
    Const,
    Dict,
    Function,
    Instance,
    Ref,
    Seq,
    Value,
    constant,
    seq,
    unknown,
)
from precaudit.static.overlays import Call, Method, records
from precaudit.static.overlays.torch import opaque

if TYPE_CHECKING:
    from precaudit.static.overlays.run import Run

PATH, FILE, TEXT, CONFIG = "pathlib.Path", "builtins.open", "builtins.read", "omegaconf.DictConfig"
HYDRA, STORE = "hydra.main", "hydra.core.config_store.ConfigStore"
MAX_KEYS = 2000
"""Entries of a file up to which it is a config and not data."""


def file_name(source: Any) -> Value:
    return Const(os.path.abspath(source.file)) if source.file is not None else unknown()


def path(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`Path("configs", name)`, `Path(__file__)`."""
    return _path(*map(text_of, args))


def _path(*parts: str | None) -> Instance:
    known = [part for part in parts if part is not None]
    return Instance(Ref(PATH), {"\0path": os.path.join(*known) if known and len(known) == len(parts) else None})


def text_of(value: Value) -> str | None:
    """The path that a string or a Path is."""
    found = value.store.get("\0path") if isinstance(value, Instance) else constant(value)
    return found if isinstance(found, str) else None


def joined(left: Value, right: Value) -> Value:
    """`folder / name`."""
    return _path(text_of(left), text_of(right))


def path_attribute(value: Instance, name: str) -> Value | None:
    """`.parent` and its kin; None for a method."""
    known = text_of(value)
    if name not in ("parent", "name", "stem", "suffix", "parents"):
        return None
    if known is None:
        return _path(None) if name == "parent" else unknown()
    pure = PurePosixPath(known)
    if name == "parents":
        return seq([_path(str(folder)) for folder in pure.parents], "tuple")
    return _path(str(pure.parent)) if name == "parent" else Const(getattr(pure, name))


def path_method(
    run: Run, receiver: Instance, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    known = text_of(receiver)
    if name in ("resolve", "absolute", "expanduser"):
        return receiver
    if name == "joinpath":
        return _path(known, *map(text_of, args))
    if name == "with_name" and known is not None and args:
        return _path(str(PurePosixPath(known).parent), text_of(args[0]))
    if name in ("as_posix", "__str__", "__fspath__"):
        return Const(known) if known is not None else unknown("string")
    if name == "with_suffix" and known is not None and args:
        return _path(str(PurePosixPath(known).with_suffix(str(constant(args[0])))))
    if name == "open":
        return Instance(Ref(FILE), {"\0path": known})
    if name in ("read_text", "read_bytes"):
        return Instance(Ref(TEXT), {"\0path": known})
    return unknown()


def os_path(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`os.path.join`, `dirname` and their kin on names that are known."""
    last = name.rpartition(".")[2]
    known = [text_of(arg) for arg in args]
    if last in ("join", "dirname", "basename", "normpath", "splitext") and known and None not in known:
        found = getattr(os.path, last)(*known)
        return Const(found) if isinstance(found, str) else seq(map(Const, found), "tuple")
    if last in ("abspath", "realpath", "expanduser", "expandvars") and args:
        return args[0]
    return opaque.result(run, [*args, *kwargs.values()], node)


def as_text(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`os.fspath(path)`."""
    known = text_of(args[0]) if args else None
    return Const(known) if known is not None else unknown("string")


def opened(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`open(path)`."""
    return Instance(Ref(FILE), {"\0path": text_of(args[0]) if args else None})


def file_method(
    run: Run, receiver: Instance, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    return Instance(Ref(TEXT), receiver.store) if name == "read" else unknown()


def loaded(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`yaml.safe_load(file)`, `json.load(file)`, `tomllib.load(file)`, `json.loads(text)`: what stands there."""
    given = args[0] if args else unknown()
    known, kind = text_of(given), name.partition(".")[0].replace("tomllib", "toml")
    if known is None:
        return unknown()
    if isinstance(given, Const) and name != "toml.load":
        try:
            return value_of(PARSERS[kind](known[:LARGEST_CONFIG]), [MAX_KEYS])  # it is the text itself
        except ForeignError:
            return unknown()
    found = parsed(run, known, kind, node)
    return unknown() if found is None else found


def parsed(run: Run, file: str, kind: str, node: Any) -> Value | None:
    """The content of a file near the script as a value; None where it is not there or is no config."""
    source = run.spot(node).source
    raw = run.read_beside(source, file)
    if raw is None or len(raw) > LARGEST_CONFIG:
        return None
    try:
        return value_of(PARSERS[kind](raw.decode("utf-8-sig")), [MAX_KEYS])
    except (UnicodeDecodeError, ForeignError):
        return None


PARSERS: Mapping[str, Callable[[str], Any]] = {"json": parse_json, "toml": parse_toml, "yaml": parse_yaml}


def value_of(found: Any, left: list[int]) -> Value:
    """Python's plain values as abstract ones, as many as are left."""
    left[0] -= 1
    if left[0] < 0:
        return unknown()
    if isinstance(found, dict):
        return Dict({str(key): value_of(value, left) for key, value in found.items()})
    if isinstance(found, list):
        return seq([value_of(value, left) for value in found])
    if isinstance(found, str) and "${" in found:
        return unknown("string")
    return Const(found) if isinstance(found, (str, int, float, type(None))) else unknown()


def configured(value: Value) -> Value:
    """An OmegaConf or ConfigDict: a dict whose keys are attributes too."""
    if isinstance(value, Dict):
        return Instance(Ref(CONFIG), {key: configured(held) for key, held in value.store.items()})
    if isinstance(value, Seq) and value.kind == "list":
        return seq([configured(item) for item in value.items], open=value.open)
    return value


CONFIG_METHODS = frozenset("get items keys values pop copy update setdefault".split())
"""Those of a dict that a config has too."""


def omegaconf(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`OmegaConf.load`, `create`, `structured`, `merge`, `to_container`; what comes from a command line is left out."""
    last = name.rpartition(".")[2]
    first = args[0] if args else unknown()
    if last == "load":
        known = text_of(first)
        found = parsed(run, known, "yaml", node) if known is not None else None
        return configured(found) if found is not None else unknown()
    if last in ("create", "structured", "ConfigDict", "DictConfig", "EasyDict", "Box", "Munch"):
        return _created(run, first, kwargs, node) if args or kwargs else Instance(Ref(CONFIG))
    if last in ("from_cli", "from_dotlist"):
        return Instance(Ref(CONFIG))
    if last in ("merge", "unsafe_merge"):
        return merged([_created(run, arg, {}, node) for arg in args])
    if last in ("to_container", "to_object"):
        return plain(first)
    return unknown()


def _created(run: Run, given: Value, kwargs: dict[str, Value], node: Any) -> Value:
    if isinstance(given, Class):
        given = calls.call(run.interpreter, given, [], {}, node)
    if isinstance(given, Instance) and isinstance(given.cls, Class):
        given = records.as_dict(given)
    return configured(given) if not kwargs else configured(Dict(dict(kwargs)))


def plain(value: Value) -> Value:
    """A config as dicts."""
    if isinstance(value, Instance) and value.library == CONFIG:
        return Dict({key: plain(held) for key, held in value.store.items()})
    return value


def merged(configs: list[Value]) -> Value:
    """Later configs over earlier ones, key by key; unknown where one of them is."""
    store: dict[Any, Any] = {}
    for config in configs:
        if not isinstance(config, Instance) or config.library != CONFIG:
            return unknown()
        for key, value in config.store.items():
            both = [held for held in (store.get(key), value) if isinstance(held, Instance) and held.library == CONFIG]
            store[key] = merged([*both]) if len(both) == 2 else value
    return Instance(Ref(CONFIG), store)


def hydra_main(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`@hydra.main(config_path="conf", config_name="config")`: a decorator that hands a config to the function."""
    places = (
        ("version_base", "config_path", "config_name") if "version_base" in kwargs else ("config_path", "config_name")
    )
    given = {**dict(zip(places, args, strict=False)), **kwargs}
    return Instance(
        Ref(HYDRA), {"\0path": given.get("config_path"), "\0name": given.get("config_name"), "\0node": node}
    )


def config_store(run: Run, name: str, args: list[Value], kwargs: dict[str, Value], node: Any) -> Value:
    """`ConfigStore.instance()`, and `store(name=…, node=Config)` on it."""
    if name.endswith(".instance"):
        return Instance(Ref(STORE))
    return unknown()


def store_method(
    run: Run, receiver: Instance, name: str, args: list[Value], kwargs: dict[str, Value], node: Any
) -> Value:
    if name == "store":
        given = {**dict(zip(("group", "name", "node"), args, strict=False)), **kwargs}
        group = [str(constant(given["group"]))] if isinstance(given.get("group"), Const) else []
        key = "/".join([*group, str(constant(given.get("name")))])
        run.structured[key.removesuffix(".yaml")] = given.get("node", unknown())
    return unknown()


def argument(run: Run, function: Function, name: str) -> Value | None:
    """The config that Hydra hands to a function as its first argument."""
    first = next(iter((*function.node.params.posonly_params, *function.node.params.params)), None)
    for decorator in function.decorators:
        if isinstance(decorator, Instance) and decorator.library == HYDRA and first and first.name.value == name:
            folder, config = (constant(decorator.store[key]) for key in ("\0path", "\0name"))
            if isinstance(config, str):
                return _composed(run, str(folder or ""), config.removesuffix(".yaml"), decorator.store["\0node"])
    return None


def _composed(run: Run, folder: str, name: str, node: Any, depth: int = 0) -> Value:
    """A config of Hydra's: its defaults in their order, itself last or where `_self_` stands."""
    if name in run.structured:
        return _created(run, run.structured[name], {}, node)
    own = parsed(run, os.path.join(folder, f"{name}.yaml"), "yaml", node)
    if not isinstance(own, Dict) or depth > 3:
        return unknown()
    defaults = own.store.pop("defaults", None)
    entries = list(defaults.items) if isinstance(defaults, Seq) else []
    if not any(constant(entry) == "_self_" for entry in entries):
        entries.append(Const("_self_"))
    layers = []
    for entry in entries:
        if isinstance(entry, Dict) and len(entry.store) == 1:
            (group, chosen) = next(iter(entry.store.items()))
            group = group.removeprefix("override ").removeprefix("optional ")
            if group.startswith("hydra/") or constant(chosen) is None:
                continue
            where, _, package = group.partition("@")
            part = _composed(run, folder, f"{where}/{constant(chosen)}", node, depth + 1)
            for key in reversed((package or where).split("/") if package != "_global_" else ()):
                part = Instance(Ref(CONFIG), {key: part})
            layers.append(part)
        elif constant(entry) == "_self_":
            layers.append(configured(own))
        elif isinstance(constant(entry), str):
            layers.append(_composed(run, folder, str(constant(entry)), node, depth + 1))
    return merged(layers)


CALLS: Mapping[str, Call] = {
    "builtins.open": opened,
    "pathlib.Path": path,
    "pathlib.PosixPath": path,
    "os.path.*": os_path,
    "os.fspath": as_text,
    **dict.fromkeys(("yaml.safe_load", "yaml.load", "yaml.full_load"), loaded),
    **dict.fromkeys((f"{kind}.load" for kind in ("json", "toml", "tomllib")), loaded),
    **dict.fromkeys((f"{kind}.loads" for kind in ("json", "toml", "tomllib")), loaded),
    "omegaconf.OmegaConf.*": omegaconf,
    "omegaconf.DictConfig": omegaconf,
    "ml_collections.ConfigDict": omegaconf,
    "ml_collections.config_dict.ConfigDict": omegaconf,
    "easydict.EasyDict": omegaconf,
    "munch.Munch": omegaconf,
    "hydra.main": hydra_main,
    "hydra.core.config_store.ConfigStore.*": config_store,
}
METHODS: Mapping[str, Method] = {
    PATH: path_method,
    FILE: file_method,
    STORE: store_method,
}
