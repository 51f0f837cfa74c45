"""
The source files that a model is made of, as one flat folder of modules that import each other relatively: what transformers' loader of
code takes (it has no subfolders). They are the repository's own files, so an exported model cannot differ from the trained one.

    files = flat_files([model.GPT, model.MixedConfig])      name -> text: model.py, model_baseline.py, geometry.py, geometry_maps.py ...

Found by reading, nothing is imported or run: from the modules of the given classes along `import`, wherever it names a file of this
repository. Four things are changed:

    imports         import geometry                    -> from . import geometry
                    from geometry.maps import exp_0    -> from .geometry_maps import exp_0
                    from streams import mixing         -> from . import streams_mixing as mixing
    PARTS           of modules that are about command lines only those definitions come along that are used
    operators       torch.library's names are those of the whole process, and a second definition frees the first, which is then used
                    all the same: each gets the name of its module, so that two models, or a model and the repository, go together
    in functions    an import of this repository there is of something that most uses do without (data/laplacian.py needs SciPy): it
                    becomes an ImportError that says so
"""
import ast
import os
import re

from common.errors import UserError
from training.config import REPOSITORY

PARTS = ("configurator", "common.errors")


def path_of(module):
    """The file of a module of this repository; None of another."""
    place = os.path.join(REPOSITORY, *module.split("."))
    return next((path for path in (f"{place}.py", os.path.join(place, "__init__.py")) if os.path.isfile(path)), None)


def flat(module):
    return module.replace(".", "_")


def flat_files(classes):
    """{file name: text} of all modules that these classes need."""
    return Files().of(sorted({cls.__module__ for cls in classes}))


class Files:

    def __init__(self):
        self.texts = {}  # module -> text
        self.wanted = {}  # module of PARTS -> names

    def of(self, modules):
        for module in modules:
            self.need(module)
        names = {}
        for module in self.texts:
            if names.setdefault(flat(module), module) != module:
                raise UserError(f"{names[flat(module)]} and {module} would be one file, {flat(module)}.py: rename one of them")
        return {f"{flat(module)}.py": text for module, text in sorted(self.texts.items())}

    def need(self, module, name=None):
        """Take this module along; of one of PARTS, this name of it."""
        if module in PARTS and name:
            if name not in self.wanted.setdefault(module, set()):
                self.wanted[module].add(name)
                self.texts[module] = self.rewritten(module, definitions(source_of(module), self.wanted[module]))
        elif module not in self.texts:
            self.texts[module] = ""  # two may import each other
            self.texts[module] = self.rewritten(module, source_of(module))

    def rewritten(self, module, text):
        lines, tree = text.splitlines(keepends=True), ast.parse(text)
        within = {id(node) for function in ast.walk(tree) if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
                  for node in ast.walk(function)}
        found = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)) and own_names(node)]
        for node in sorted(found, key=lambda node: -node.lineno):
            last, indent = lines[node.end_lineno - 1], " " * node.col_offset
            old = "".join([*lines[node.lineno - 1:node.end_lineno - 1], last[:node.end_col_offset]])
            new = [refusal(node)] if id(node) in within else self.relative(node, old)
            lines[node.lineno - 1:node.end_lineno] = [indent + f"\n{indent}".join(new) + last[node.end_col_offset:]]
        own = '"".join(c if c.isascii() and c.isalnum() else "_" for c in __name__)'
        text = re.sub(r'custom_op\("(\w+)::', rf'custom_op("\1_" + {own} + "::', "".join(lines))
        file = os.path.relpath(path_of(module), REPOSITORY).replace(os.sep, "/")
        how = f"{', '.join(sorted(self.wanted[module]))} of it" if module in PARTS else "as it is, but for imports (and names of operators)"
        return f"# {file} of mixed-curvature-gpt: {how}\n{text}"

    def relative(self, node, old):
        """The same statement (lines) with relative imports of flat modules; what it names comes along. old: its text."""
        if isinstance(node, ast.Import):
            own = [a for a in node.names if path_of(a.name)]
            for alias in own:
                if "." in alias.name and not alias.asname:
                    raise UserError(f"import {alias.name}: cannot be exported; write from {alias.name.rpartition('.')[0]} import ...")
                self.need(alias.name)
            others = [written(a) for a in node.names if a not in own]
            return [*([f"import {', '.join(others)}"] if others else []), *(f"from . import {written(a, flat(a.name))}" for a in own)]
        modules = [a for a in node.names if path_of(f"{node.module}.{a.name}")]
        names = [a for a in node.names if a not in modules]
        for alias in modules:
            self.need(f"{node.module}.{alias.name}")
        for alias in names:
            self.need(node.module, alias.name)
        found = [f"from . import {written(a, flat(f'{node.module}.{a.name}'))}" for a in modules]
        if names and not modules:  # the list of names stays as it is written
            return [re.sub(r"^\s*from\s+\S+", f"from .{flat(node.module)}", old)]
        return [*found, f"from .{flat(node.module)} import {', '.join(map(written, names))}"] if names else found


def source_of(module):
    with open(path_of(module), encoding="utf-8") as f:
        return f.read()


def own_names(node):
    """Modules of this repository that an import statement names."""
    if isinstance(node, ast.Import):
        return [a.name for a in node.names if path_of(a.name)]
    if node.level or not node.module:
        return []
    return [m for m in (node.module, *(f"{node.module}.{a.name}" for a in node.names)) if path_of(m)]


def written(alias, name=None):
    """'name as what it is bound to'"""
    name, bound = name or alias.name, alias.asname or alias.name
    return name if name == bound else f"{name} as {bound}"


def refusal(node):
    return f'raise ImportError("{own_names(node)[-1]} is of the repository mixed-curvature-gpt and was not exported")'


def definitions(text, names):
    """Of a module's text what these names need: their definitions, what those use, and imports."""
    lines, tree = text.splitlines(keepends=True), ast.parse(text)
    binds = {}  # name -> statement
    for node in tree.body:
        binds.update(dict.fromkeys(bound_by(node), node))
    kept, open_names = set(), set(names)
    while open_names:
        node = binds.get(open_names.pop())
        if node is not None and node not in kept:
            kept.add(node)
            open_names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & binds.keys()
    parts, before = [], None
    for node in sorted(kept, key=lambda node: node.lineno):
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
        imports = isinstance(node, (ast.Import, ast.ImportFrom))
        parts.append("" if imports and before in (None, True) else "\n" if before in (None, True) and not isinstance(
            node, (ast.ClassDef, ast.FunctionDef)) else "\n\n")
        parts.append("".join(lines[first - 1:node.end_lineno]))
        before = imports
    return "".join(parts)


def bound_by(node):
    """Names that a statement at the top of a module binds."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [(a.asname or a.name).partition(".")[0] for a in node.names]
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    return []
