"""What the file of an exported program may hold, so that reading it runs no program of its maker.

`torch.export.load` trusts its file: sample inputs and some weights are pickles, guards and symbolic sizes
are Python text that is evaluated, an operator may be any function below ``torch``, and names end up in
generated code. Here the archive is read with zipfile and json alone, checked, and written anew without what
is not needed.
"""

import io
import json
import keyword
import re
import zipfile
from typing import Any

from uapray.errors import ClassifierError

_PLAIN = {"archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id"}
_PROGRAM = "models/model.json"
_WEIGHTS, _CONSTANTS = "data/weights/", "data/constants/"
_SAMPLES = "data/sample_inputs/model.pt"
_CONFIGS = (f"{_WEIGHTS}model_weights_config.json", f"{_CONSTANTS}model_constants_config.json")
_RAW = re.compile(r"(weight|tensor)_\d+")

_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims)\.\w+\.\w+"
    r"|torch\.ops\.torchvision\.(nms|roi_align|roi_pool|deform_conv2d)\.\w+"
    r"|torch\.ops\.higher_order\.wrap_with_set_grad_enabled"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|and_|or_|not_|eq|ne|lt|le|gt|ge)"
    r"|math\.(ceil|floor|trunc|sqrt)|torch\.sym_(int|float|max|min|not|ite|sqrt)"
)
_FILE_OPERATORS = re.compile(r"torch\.ops\.aten\.(from_file|save|load)\b.*")
_TEXT_ARGUMENTS = {"approximate", "equation", "mode", "padding_mode", "rounding_mode", "reduce", "indexing"}
_TEXT = re.compile(r"[\w ,.>'-]{0,200}")
_WORD = re.compile(r"[\w.+:-]*")
_SYMBOL_CALLS = (
    "Add|CeilDiv|CeilToInt|CleanDiv|Eq|FloatTrueDiv|FloorDiv|FloorToInt|Ge|Gt|Identity|Integer|IntTrueDiv|Le|Lt|Max"
    "|Min|Mod|ModularIndexing|Mul|Ne|PythonMod|Rational|RoundToInt|ToFloat|TruncToInt"
)
# The text is evaluated: nothing but symbols, numbers, operators and the functions that sizes are made of.
_SYMBOLS = re.compile(
    r"(Symbol\('[a-z]{1,4}\d++'(, [a-z]++=(True|False))*+\)|[a-z]{1,4}\d++|\d++|[-+*/(),<>=! ]"
    rf"|({_SYMBOL_CALLS})\(|True|False)*+"
)
_POWER = re.compile(r"\*\s*\*|\d{20}")  # short texts of which make numbers without end
_EXPECTED = "expected an exported program of plain tensors and operators"
_HOW = "export the module again with this torch (torch.export.save)"
_TREES = {None, "builtins.tuple", "builtins.list", "builtins.dict"}
_BEFORE_2_8 = "serialized_exported_program.json"


def is_archive(body: bytes) -> bool:
    """Whether the bytes are a zip that says of itself that it is an exported program."""
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            names = [name for name in archive.namelist() if name.partition("/")[2] == "archive_format"]
            return _BEFORE_2_8 in archive.namelist() or (bool(names) and archive.read(names[0]) == b"pt2")
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError):
        return False


def cleaned(origin: str, body: bytes) -> tuple[bytes, dict[str, Any]]:
    """Check an archive and write it anew: no pickle, no guard, no metadata.

    Args:
        origin: Name of the file, for the error.
        body: The zip.

    Returns:
        The bytes of the clean archive, and the program as plain data.

    Raises:
        ClassifierError: If it holds anything that need not be in a classifier.
    """
    try:
        records = _records(body)
        program = _json(records, _PROGRAM)
        configs = {name: _config(name, records) for name in _CONFIGS}
        program = _program(program)
    except _RefusedError as refused:
        raise ClassifierError(f"{origin}: {_EXPECTED}, got {refused}; {_HOW}") from None
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ClassifierError(f"{origin}: {_EXPECTED}, got a damaged one ({type(error).__name__}); {_HOW}") from None
    texts = {_PROGRAM: program, **configs}
    for name, value in texts.items():
        records[name] = json.dumps(value).encode()
    records[_SAMPLES] = b""  # a pickle in the original; torch asks for the name and takes nothing for "none"
    return _zip(records), program


class _RefusedError(Exception):
    """What the archive must not hold."""


def _records(body: bytes) -> dict[str, bytes]:
    """Return the records that may be there by their name below the root folder; sample inputs left out."""
    found: dict[str, bytes] = {}
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        for info in archive.infolist():
            name = info.filename.partition("/")[2]
            folder, _, last = name.rpartition("/")
            raw = f"{folder}/" in (_WEIGHTS, _CONSTANTS) and _RAW.fullmatch(last)
            if name in _PLAIN or name == _PROGRAM or name in _CONFIGS or raw:
                if name in found:
                    raise _RefusedError(f"two records {name}")
                found[name] = archive.read(info)
            elif name != _SAMPLES and not name.startswith("extra/"):
                raise _RefusedError(f"the record {info.filename}")
    return found


def _json(records: dict[str, bytes], name: str) -> dict[str, Any]:
    try:
        value = json.loads(records[name])
    except (KeyError, ValueError):
        raise _RefusedError(f"no readable {name}") from None
    if not isinstance(value, dict):
        raise _RefusedError(f"no readable {name}")
    return value


def _config(name: str, records: dict[str, bytes]) -> dict[str, Any]:
    """Check the list of weights or constants: every one raw bytes, none pickled."""
    config, folder = _json(records, name), f"{name.rpartition('/')[0]}/"
    for tensor, entry in config.get("config", {}).items():
        if entry.get("use_pickle") is not False:
            raise _RefusedError(f"a pickled tensor, {tensor}")
        if not _RAW.fullmatch(entry["path_name"]) or folder + entry["path_name"] not in records:
            raise _RefusedError(f"a tensor without bytes, {tensor}")
    _check(config)
    return config


def _program(program: dict[str, Any]) -> dict[str, Any]:
    """Return the program without guards, notes and inner modules' calls; names and texts checked."""
    module = program.get("graph_module", {})
    root = [entry for entry in module.get("module_call_graph", []) if entry.get("fqn") == ""]
    module = {**module, "module_call_graph": root, "metadata": {}, "treespec_namedtuple_fields": {}}
    kept = _without_notes({**program, "graph_module": module, "guards_code": []})
    assert isinstance(kept, dict)
    for key in kept.get("range_constraints", {}):
        _want(_SYMBOLS, key, "a symbol")
    _check(kept)
    return kept


def _without_notes(value: Any) -> Any:
    """Take away where in the maker's source each operator came from; torch does not need it."""
    if isinstance(value, list):
        return [_without_notes(item) for item in value]
    if isinstance(value, dict):
        return {
            key: {} if key == "metadata" and isinstance(item, dict) else _without_notes(item)
            for key, item in value.items()
        }
    return value


def _check(value: Any, key: str = "") -> None:
    """Walk plain data; ``key`` is the name that the value stands under."""
    if isinstance(value, list):
        for item in value:
            _check(item, key)
    elif isinstance(value, dict):
        _check_argument(value)
        for name, item in value.items():
            _want(_WORD, name, "a key")
            _check(item, name)
    elif isinstance(value, str):
        _check_text(key, value)


def _check_argument(entry: dict[str, Any]) -> None:
    """Refuse operators' arguments other than tensors, numbers and the few texts that have a meaning."""
    inner = entry.get("arg")
    if isinstance(inner, dict) and "as_string" in inner and entry.get("name") not in _TEXT_ARGUMENTS:
        raise _RefusedError(f"the text argument {entry.get('name')!r}")
    for kind in ("as_operator", "as_custom_obj", "as_strings"):
        if kind in entry:
            raise _RefusedError(f"an argument of the kind {kind}")


def _check_text(key: str, text: str) -> None:
    match key:
        case "target":
            _want(_OPERATOR, text, "the operator")
            if _FILE_OPERATORS.fullmatch(text):
                raise _RefusedError(f"the operator {text!r}")
        case "expr_str":
            _want(_SYMBOLS, text, "the size")
            if _POWER.search(text):
                raise _RefusedError(f"the size {text[:80]!r}")
        case "in_spec" | "out_spec":
            _check_tree(text)
        case "as_string":
            _want(_TEXT, text, "the text")
        case "name" | "forward_arg_names" | "as_name":
            if text and (not text.isidentifier() or keyword.iskeyword(text)):
                raise _RefusedError(f"the name {text!r}")
        case _:
            _want(_WORD, text, "the text")


def _check_tree(text: str) -> None:
    """Check the layout of inputs or outputs: tuples, lists and dicts of plain words."""
    try:
        _, tree = json.loads(text)
        pending = [tree]
        while pending:
            node = pending.pop()
            if node["type"] not in _TREES:
                raise _RefusedError(f"the container {node['type']!r}")
            _check(json.loads(node["context"] or "null"))
            pending += node["children_spec"]
    except (ValueError, TypeError, KeyError):
        raise _RefusedError("an unreadable layout of its inputs or outputs") from None


def _want(pattern: re.Pattern[str], text: str, what: str) -> None:
    if not text.isascii() or not pattern.fullmatch(text):
        raise _RefusedError(f"{what} {text[:80]!r}")


def _zip(records: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(records):
            archive.writestr(zipfile.ZipInfo(f"model/{name}"), records[name])
    return target.getvalue()
