"""
Configuration: dataclass defaults, then config files, then --key=value, in the order in which they are given.

    python train.py config/train_shakespeare_mixed.py --max_iters=200 --seed=3
    python train.py --help

A config file is Python with flat assignments (key = value; arithmetic is fine; names that begin with _ are its own).
The keys, their types and their help texts are the fields, annotations and trailing comments of the dataclasses, so
there is nothing to keep in step with them. An unknown key, a value of the wrong type or a key that the chosen model
does not have is one line and exit status 2, from a file as from the command line. So is, on the command line, a key of
which a dataclass's `without_effect()` says that the other values switch it off; a file may set it, for whoever changes the others.
"""
import argparse
import ast
import contextlib
import dataclasses
import difflib
import functools
import inspect
import math
import os
import sys
import textwrap
import types
import typing

from common import paths
from common.errors import UserError, shown

Path = typing.Annotated[str, "path"]  # type of a key that names a file or folder: a leading ~ is the user's home


def keys_of(schema):
    """The fields of a dataclass (or of one of its objects) that a user may set: name -> dataclasses.Field. Not to be changed."""
    return _keys_of(schema if isinstance(schema, type) else type(schema))


@functools.cache  # asked for each key of each run of a sweep
def _keys_of(schema):
    return {f.name: f for f in dataclasses.fields(schema) if not f.metadata.get("derived")}


def derived(**kwargs):
    """A dataclass field that the program fills in (from the data, say); not a key."""
    return dataclasses.field(metadata={"derived": True}, **kwargs)


# ----------------------------------------------------------------------------------------------------------------------
# types

def _describe(kind):
    if kind is Path:
        return "a path"
    if typing.get_origin(kind) is typing.Literal:
        return " | ".join(repr(a) for a in typing.get_args(kind))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " | ".join(_describe(a) for a in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        return f"a list, each {_describe(typing.get_args(kind)[0])}"
    return {bool: "True | False", int: "a whole number", float: "a number", str: "text",
            type(None): "None"}[kind]


def _fit(value, kind):
    """(True, value as that type) or (False, None). Strict: a bool is no int, 1.0 is no int, an int is a float."""
    if kind is Path:
        kind = str
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for option in args:
            fits, fitted = _fit(value, option)
            if fits:
                return fits, fitted
        return False, None
    if origin is typing.Literal:
        return any(value == a and type(value) is type(a) for a in args), value
    if origin is list:
        if not isinstance(value, (list, tuple)):
            return False, None
        fitted = [_fit(v, args[0]) for v in value]
        return all(ok for ok, _ in fitted), [v for _, v in fitted]
    if kind is float:
        try:
            ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        except OverflowError:  # a whole number that no float holds
            ok = False
        return ok, float(value) if ok else None
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2 ** 63, value
    return isinstance(value, kind), value


def _from_text(text, kind):
    """A command-line value: as the text itself where the key takes it (so --start=1 is text; but None is None where there may be
    none), else as a literal."""
    text = as_typed(text)
    if text == "None" and _fit(None, kind)[0]:
        return None
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if _fit(value, kind)[0] and not _fit(text, kind)[0] else (text if _fit(text, kind)[0] else value)


def as_typed(argument):
    """What the user typed: where the locale is not that of the terminal, bytes of UTF-8 reach Python as lone surrogates."""
    if any("\udc80" <= character <= "\udcff" for character in argument):
        with contextlib.suppress(UnicodeError):
            return os.fsencode(argument).decode("utf-8")
    return argument


def checked(key, value, field, where):
    """The value in the type of its dataclass field, or UserError."""
    fits, fitted = _fit(value, field.type)
    if not fits:
        if _takes(field.type, int) and type(value) is int:
            digits = str(value) if abs(value) < 10 ** 30 else f"a number of {len(str(abs(value)))} digits"
            raise UserError(f"{where}: {key} = {digits}: a whole number has to be between -2^63 and 2^63")
        raise UserError(f"{where}: {key} = {shown(value)}: {key} takes {_describe(field.type)}")
    return paths.expand(fitted) if _takes(field.type, Path) and isinstance(fitted, str) else fitted


def _takes(kind, option):
    """Is `option` this type, or one of those that it may be?"""
    return kind is option or typing.get_origin(kind) in (typing.Union, types.UnionType) and option in typing.get_args(kind)


# ----------------------------------------------------------------------------------------------------------------------
# config files

def run_file(path, kind="config file", no_file=""):
    """The assignments of a config file, or of another Python file of that form, as a dict. no_file: what to say where it is a folder, or
    nothing that looks like a file."""
    if not os.path.lexists(path):
        folder = os.path.dirname(path) or "."
        near = difflib.get_close_matches(os.path.basename(path), os.listdir(folder) if os.path.isdir(folder) else [], 1)
        hint = f"; did you mean {os.path.join(folder, near[0])}?" if near else "" if path.endswith(".py") else no_file
        raise UserError(f"{path}: no such {kind}{hint}")
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; a {kind} is needed{no_file}")
    paths.file_to_read(path, path, f"a {kind}")
    try:
        with open(path, encoding="utf-8-sig") as f:
            text = f.read()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text, so not a {kind}") from None
    names = {}
    try:
        exec(compile(text, path, "exec"), names)
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno or '?'}: {error.msg}") from None
    except (Exception, SystemExit) as error:
        line = [f.lineno for f in inspect.getinnerframes(error.__traceback__) if f.filename == path]
        raise UserError(f"{path}, line {line[0] if line else '?'}: {type(error).__name__}: "
                        f"{str(error).splitlines()[0] if str(error) else ''}") from None
    return {k: v for k, v in names.items() if not k.startswith("_") and not isinstance(v, types.ModuleType)}


# ----------------------------------------------------------------------------------------------------------------------
# help

def _comments(schema):
    """Field name -> trailing comment, read from the source of the dataclass and of those it inherits from."""
    found = {}
    for cls in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(cls):
            continue
        lines = textwrap.dedent(inspect.getsource(cls)).splitlines()
        for node in ast.parse("\n".join(lines)).body[0].body:
            if isinstance(node, ast.AnnAssign):
                rest = lines[node.end_lineno - 1][node.end_col_offset:].strip()
                text = [rest.lstrip("# ")]
                for line in lines[node.end_lineno:]:  # a comment may go on below, set in under the first line
                    if not (line.startswith("     ") and line.strip().startswith("#")):
                        break
                    text.append(line.strip().lstrip("# "))
                found[node.target.id] = " ".join(t for t in text if t)
    return found


def _default(field):
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def help_text(script_doc, schema, variants):
    out = [script_doc.strip(), ""]
    shown = {}  # key -> comment; a key that means something else in another model is shown there, too
    for title, cls in [("keys", schema)] + [(f"keys of model = {name!r}", cls) for name, cls in variants.items()]:
        comments = _comments(cls)
        rows = [(k, f) for k, f in keys_of(cls).items() if shown.get(k, ...) != comments.get(k)]
        if not rows:
            continue
        out.append(f"{title}:")
        for key, field in rows:
            shown[key] = comments.get(key)
            default = _default(field)
            out.append(f"  --{key}={paths.short(default) if _takes(field.type, Path) and default else default!r}")
            help_line = comments.get(key) or _describe(field.type)
            out.extend(textwrap.wrap(help_line, 100, initial_indent=" " * 8, subsequent_indent=" " * 8))
        out.append("")
    return "\n".join(out)


# ----------------------------------------------------------------------------------------------------------------------

def without_effect(*configs):
    """Keys of these dataclass instances that the others leave without effect -> by what."""
    return {key: why for config in configs if hasattr(config, "without_effect") for key, why in config.without_effect().items()}


def resolve(argv, schema, variants=None, selector="model", script_doc="", refuse_idle=True):
    """Read a command line into dataclass instances. refuse_idle: are keys without effect refused?

    schema: the dataclass of the script. variants: name -> dataclass of a model; schema's field `selector` names the one
    in use, and only its keys may be set. Returns (schema instance, variant instance or None). Raises UserError.
    """
    variants = variants or {}
    if any(a in ("--help", "-h") for a in argv):
        print(help_text(script_doc, schema, variants))
        sys.exit(0)
    fields = {key: [field] for key, field in keys_of(schema).items()}  # a key may take other values in another model
    for cls in variants.values():
        for key, field in keys_of(cls).items():
            known = fields.setdefault(key, [])
            if key not in keys_of(schema) and field.type not in [f.type for f in known]:
                known.append(field)

    given, origin = {}, {}

    def value_of(key, field):
        value, where, text = given[key]
        return checked(key, _from_text(value, field.type) if text else value, field, where)

    def put(key, value, where, text=False):
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1, 0.5)
            raise UserError(f"{where}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else
                                                                 "; --help lists every key"))
        given[key], origin[key] = (value, where, text), where
        if len(fields[key]) == 1:  # otherwise when the model is known
            value_of(key, fields[key][0])

    for arg in argv:
        if arg.startswith("--"):
            key, equals, text = arg[2:].partition("=")
            if not equals:
                raise UserError(f"{arg}: options are written --key=value (--help lists every key)")
            put(key, text, "command line", text=True)
        elif arg.startswith("-") and arg != "-":
            raise UserError(f"{arg}: options are written --key=value (--help lists every key)")
        else:
            no_file = f"; a folder is given as --out_dir={arg}" if "out_dir" in fields else ""
            for key, value in run_file(paths.expand(arg), no_file=no_file).items():
                put(key, value, arg)

    def refuse_without_effect(config):
        for key, why in without_effect(config).items() if refuse_idle else ():
            if origin.get(key) == "command line" and given[key][0] not in (None, "None"):
                raise UserError(f"command line: {key} has no effect with {why}")

    own = {k: value_of(k, field) for k, field in keys_of(schema).items() if k in given}
    main = schema(**own)
    refuse_without_effect(main)
    if not variants:
        return main, None
    chosen = getattr(main, selector)
    allowed = keys_of(variants[chosen])
    for key in given:
        if key not in own and key not in allowed:
            owners = " or ".join(f"{selector} = {n!r}" for n, cls in variants.items() if key in keys_of(cls))
            raise UserError(f"{origin[key]}: {key} belongs to {owners} and has no effect on {selector} = {chosen!r}")
    variant = variants[chosen](**{k: value_of(k, field) for k, field in allowed.items() if k in given and k not in own})
    refuse_without_effect(variant)
    return main, variant


def as_dict(*configs):
    """One flat dict of everything in these dataclass instances, as config.json holds it."""
    out = {}
    for config in configs:
        out.update(dataclasses.asdict(config))
    return out


class Parser(argparse.ArgumentParser):
    """For scripts whose options are not the keys of a configuration (`--jobs 2`): argparse whose complaint is this project's
    one line, and whose --help begins with the script's docstring."""

    def __init__(self, script, docstring):
        super().__init__(prog=script, description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        raise UserError(f"{message} (--help shows the options)")


def whole_number(least):
    """An argparse type."""
    def convert(text):
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return number
    return convert
