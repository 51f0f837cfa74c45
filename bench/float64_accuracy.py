"""
Accuracy of the forms of geometry/ for float32 rows: row scalars in float64, in float32 with compensation, in float32 without.

    python bench/float64_accuracy.py
    git show 8e080af:geometry.py > /tmp/old.py && python bench/float64_accuracy.py --plain=/tmp/old.py

Rows: tests/spaces.py's neighbours(): every curvature of its grid, norms up to 0.999 of the radius, second points 1e-6 to 1
radii away ('opposite': from -x), dimensions 1 to 384 (gradients: 7 to 384). Results against 60 digits (tests/oracle.py).
Gradients against float64 rows, which are good to 1e-9 (tests/test_geometry_derivatives.py). Errors are relative, of whole rows: the worst
and, in brackets, the median. Without compensation: a geometry.py from before row_scalars, with float32 in place of float64, which
is what ran on mps.
"""
import importlib.util
import os
import sys
from dataclasses import dataclass

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "tests")]
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import oracle
import spaces
import torch

import configurator
import geometry
from common import paths
from common.errors import exit_cleanly
from configurator import Path

CASES = {  # name -> (map, opposite points?)
    "expmap": ("expmap", False), "logmap": ("logmap", False), "logmap, opposite": ("logmap", True),
    "mobius_add": ("mobius_add", False), "mobius_add, opposite": ("mobius_add", True), "dist": ("dist", False),
    "add_exp_0": ("add_exp_0", False), "log_0": ("log_0", False), "conformal_factor": ("conformal_factor", False),
    "transport": ("transport", False)}


@dataclass
class AccuracyConfig:
    plain: Path = ""  # a geometry.py from before row_scalars

    def __post_init__(self):
        if self.plain:
            paths.file_to_read(self.plain, f"plain = '{self.plain}'")


def plain_form(file):
    spec = importlib.util.spec_from_file_location("plain_geometry", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module._wide = lambda row: torch.promote_types(row.dtype, torch.float32)
    return module


def grid(name, opposite):
    """(c, rows in float32). v: for expmap the step to the second point, elsewhere 0.3 radii long."""
    rng = spaces.generator(5)
    for c, x, y in spaces.neighbours(1, opposite):
        v = (spaces.unit(rng, len(x)) * 0.3 * spaces.radius(c)).float()
        if name == "expmap":
            v = geometry.logmap(x.double(), y.double(), torch.tensor(c)).float()
            if c < 0 and spaces.half_angle(c, x, v) > 1.5:
                continue
        yield c, {"p": (x,), "pp": (x, y), "pt": (x, v), "ppt": (x, y, v)}[spaces.FUNCTIONS[name][1]]


def calls(plain):
    """Form -> the geometry that computes in it"""
    def form(choice):
        geometry.use_row_scalars(choice)
        return geometry
    forms = {"float64": lambda: form("float64"), "float32, compensated": lambda: form("float32")}
    if plain:
        module = plain_form(plain)
        forms["float32, plain"] = lambda: module
    return forms


def errors(forms, name, opposite, derivatives):
    """sign of c -> form -> errors; of gradients the larger of those by the rows."""
    found = {}
    for c, rows in grid(name, opposite):
        if c == 0 or (derivatives and len(rows[0]) < 7):
            continue
        ct = torch.tensor(c)
        cotangent = torch.randn(1 if name in ("dist", "conformal_factor") else len(rows[0]), generator=spaces.generator(1))

        def gradients(module, dtype):
            inputs = [row.to(dtype).requires_grad_() for row in rows]
            out = getattr(module, name)(*inputs, ct.to(dtype))
            return torch.autograd.grad(out, inputs, cotangent.to(out.dtype))
        truth = (gradients(geometry, torch.float64) if derivatives else
                 spaces.ORACLES[name](*(oracle.row(row) for row in rows), oracle.mp.mpf(ct.item())))
        for form, module in forms.items():
            if derivatives:
                pairs = zip(gradients(module(), torch.float32), truth)
                error = max(spaces.relative(got, expected) for got, expected in pairs)
            else:
                error = oracle.relative_error(getattr(module(), name)(*rows, ct), truth)
            found.setdefault(c > 0, {}).setdefault(form, []).append(error)
    return found


@exit_cleanly
def main(argv):
    config, _ = configurator.resolve(argv, AccuracyConfig, script_doc=__doc__)
    torch.set_num_threads(1)
    forms = calls(config.plain)
    for derivatives in (False, True):
        title = "gradients by the rows" if derivatives else "results"
        print(f"\n| {title} | c | {' | '.join(forms)} |\n|{'---|' * (2 + len(forms))}")
        for label, (name, opposite) in CASES.items():
            for positive, by_form in sorted(errors(forms, name, opposite, derivatives).items(), reverse=True):
                cells = [f"{max(e):.0e} ({sorted(e)[len(e) // 2]:.0e})" for e in by_form.values()]
                print(f"| {label} | {'> 0' if positive else '< 0'} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
