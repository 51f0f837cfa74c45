"""
What the Triton kernels become on a GPU, without one: every kernel is compiled ahead of time for sm_80 (A100) and sm_90 (H100), and
read back from the machine code.

    python bench/machine_code.py                       a table of every kernel
    python bench/machine_code.py --json=code.json      the same as JSON

Columns: registers a thread; bytes of stack (local memory: spilled registers or indexed arrays; 0 is wanted); 16-byte global
loads and stores of rows in the code against the number that the pass count in kernels/__init__.py asks for.

One number a thread and pass is rows x columns / threads; its bytes, divided by 16, is the number of 16-byte accesses of a
pass. Kernels that walk along tokens are counted for one step of their loop, those of attention by distance not at all. Not to be run
with TRITON_INTERPRET=1.
"""
import itertools
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import torch

import configurator
from common import paths
from common.errors import UserError, exit_cleanly
from common.whole_files import write_json
from configurator import Path

TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
WIDTHS = (32, 64, 128, 384, 768, 1024, 2048, 4096)
# (heads, head size) of the walking kernels
TOKENS = ((1, 64), (4, 32), (6, 64), (12, 64), (1, 768), (16, 64), (1, 2048), (16, 128), (1, 4096), (4, 1024), (16, 256), (32, 128))
STREAMS = 4  # of the kernels for residual streams; other numbers at the width at which variants are compiled
VARIED = 1024  # the width at which variants are compiled
# of the walking kernels: (what is other than with reference 'previous' and no bias; row tiles loaded forward, backward, stored
# forward, backward; float32 tiles stored backward)
VARIANTS = {"origin": (dict(REFERENCE=0), 1, 3, 1, 1, 1), "given": (dict(REFERENCE=2), 2, 4, 1, 2, 1),
            "bias": (dict(BIAS=True), 2, 5, 1, 1, 2), "c per token": (dict(C_PER_TOKEN=True), None, 5, None, 1, 1)}


@dataclass
class MachineCodeConfig:
    json: Path | None = None  # write the rows here
    arch: list[int] | None = None  # compute capabilities (None: 80 and 90)
    dtype: list[str] | None = None  # of the rows (None: float32, bfloat16, float16)
    width: list[int] | None = None  # D (None: 32, 64, 128, 384, 768, 1024, 2048 and 4096)
    kernel: list[str] | None = None  # those whose name has one of these in it (None: all)


def cases(dtypes, widths):
    """(name, D, dtype, function, signature, constexprs, options of the launch, row tiles loaded, row tiles stored,
    float32 tiles of LayerNorm's weights loaded, and of their gradient stored, elements a thread)"""
    import kernels as K
    from kernels import layernorm, logarithm, scalar_attention, sums
    for dtype in dtypes:
        row, largest = "*" + TYPES[dtype], float(torch.finfo(getattr(torch, dtype)).max)
        for D in widths:
            index = dict(c_div="i32", c_mod="i32", limit_div="i32", limit_mod="i32", rounding="fp32", z_low="fp32")
            for kind, number in K.KINDS.items():
                more = kind == "exp_r"  # a third row: x (+) exp_r(v)
                rows, block_d, options = K.tile(D, 3 + more)
                signature = dict(x_ptr=row, r_ptr=row, v_ptr=row, c_ptr="*fp32", limit_ptr="*fp32", out_ptr=row, R="i32", D="i32",
                                 x_stride="i32", r_stride="i32", v_stride="i32", **index)
                yield (f"{kind} forward", D, dtype, sums._sum_forward, signature,
                       dict(KIND=number, LIMITED=True, LARGEST=largest, ROWS=rows, BLOCK_D=block_d), options, 2 + more, 1, 0, 0,
                       rows * block_d // (32 * options["num_warps"]))
                rows, block_d, options = K.tile(D, 5 + 2 * more)
                signature = dict(g_ptr=row, x_ptr=row, r_ptr=row, v_ptr=row, c_ptr="*fp32", limit_ptr="*fp32", dx_ptr=row,
                                 dr_ptr=row, dv_ptr=row, dc_ptr="*fp32", dlimit_ptr="*fp32", R="i32", D="i32", g_stride="i32",
                                 x_stride="i32", r_stride="i32", v_stride="i32", **index)
                # c for each row: the default model's, which is per head
                for variant, ones in {"": True, ", c per row": False}.items() if D == VARIED or D == 64 else {"": True}.items():
                    yield (f"{kind} backward{variant}", D, dtype, sums._sum_backward, signature,
                           dict(KIND=number, LIMITED=True, ONE_C=ones, ONE_LIMIT=ones, X_LARGEST=largest, R_LARGEST=largest,
                                V_LARGEST=largest, ROWS=rows, BLOCK_D=block_d), options, 3 + more, 2 + more, 0, 0,
                           rows * block_d // (32 * options["num_warps"]))
            rows, block_d, options = K.tile(D, 3)
            signature = dict(x_ptr=row, y_ptr=row, c_ptr="*fp32", out_ptr=row, R="i32", D="i32", x_stride="i32",
                             y_stride="i32", c_div="i32", c_mod="i32")
            yield ("log forward", D, dtype, logarithm._log_forward, signature,
                   dict(LARGEST=largest, ROWS=rows, BLOCK_D=block_d), options, 2, 1, 0, 0, rows * block_d // (32 * options["num_warps"]))
            rows, block_d, options = K.tile(D, 5)
            signature = dict(g_ptr=row, x_ptr=row, y_ptr=row, c_ptr="*fp32", dx_ptr=row, dy_ptr=row, dc_ptr="*fp32", R="i32",
                             D="i32", g_stride="i32", x_stride="i32", y_stride="i32", c_div="i32", c_mod="i32")
            yield ("log backward", D, dtype, logarithm._log_backward, signature,
                   dict(ONE_C=True, X_LARGEST=largest, Y_LARGEST=largest, ROWS=rows, BLOCK_D=block_d), options, 3, 2, 0, 0,
                   rows * block_d // (32 * options["num_warps"]))
        for D in (D for D in widths if D <= scalar_attention.MAX_D):
            numbers = dict(T="i32", T_ALL="i32", D="i32", GROUP="i32", N_KV="i32")
            scalars = lambda *names: {f"{name}_ptr": "*fp32" for name in names}
            values = lambda *names: {f"{name}_ptr": row for name in names}
            for way, name, function, signature, saturates in (
                    ("o", "forward", scalar_attention._distance_forward,
                     dict(narrow_ptr="*i32", **values("v", "out"), **scalars("a", "b", "slope", "z", "log")), True),
                    ("da", "queries", scalar_attention._distance_backward_queries,
                     {**values("g", "v", "out"), **scalars("a", "b", "slope", "z", "log", "da", "delta")}, False),
                    ("db, dv", "keys", scalar_attention._distance_backward_keys,
                     {**values("g", "v", "dv"), **scalars("a", "b", "slope", "z", "log", "delta", "db")}, True)):
                for sloped in (False, True):  # passes are not counted
                    options = scalar_attention.blocks(name, D, getattr(torch, dtype), sloped)
                    shape = {k: options.pop(k) for k in ("BLOCK", "OTHER", "BLOCK_D")}
                    yield (f"distance attention {way}{', by age' if sloped else ''}", D, dtype, function, {**signature, **numbers},
                           {**shape, "SLOPED": sloped, **(dict(LARGEST=largest) if saturates else {})}, options, 0, 0, 0, 0, 0)
        for heads, size in (t for t in TOKENS if t[0] * t[1] in widths or t[0] == 1 and t[1] in widths):
            x = torch.empty(1, 8, heads, size)
            _, _, _, _, block_h, block_d, options = layernorm._walk(x)
            elements = max(1, block_h * block_d // (32 * options["num_warps"]))
            signature = dict(x_ptr=row, r_ptr=row, c_ptr="*fp32", w_ptr="*fp32", b_ptr="*fp32", out_ptr=row, mean_ptr="*fp32",
                             rstd_ptr="*fp32", N="i32", T="i32", NH="i32", HS="i32", x_stride="i32", r_stride="i32",
                             c_div="i32", c_mod="i32")
            shape = dict(BIAS=False, LARGEST=largest, STEPS=K.CHUNK, BLOCK_H=block_h, BLOCK_D=block_d)
            # outside the loop: the row before the chunk and the weights; in it: x and out
            yield ("log + LayerNorm forward", (heads, size), dtype, layernorm._log_layernorm_forward, signature,
                   dict(REFERENCE=1, **shape), options, 2, 1, 1, 0, elements)
            varied = VARIANTS.items() if heads * size == VARIED else ()
            for variant, (other, loads, _, stores, _, _) in varied:
                if loads:
                    weights = 1 + ("BIAS" in other)
                    yield (f"log + LayerNorm forward, {variant}", (heads, size), dtype, layernorm._log_layernorm_forward, signature,
                           dict(REFERENCE=1, **shape) | other, options, loads, stores, weights, 0, elements)
            options = K.walk_back_options(block_h * block_d, size)
            elements = max(1, block_h * block_d // (32 * options["num_warps"]))
            signature = dict(g_ptr=row, x_ptr=row, r_ptr=row, c_ptr="*fp32", w_ptr="*fp32", mean_ptr="*fp32", rstd_ptr="*fp32",
                             dx_ptr=row, dr_ptr=row, dc_ptr="*fp32", dw_ptr="*fp32", db_ptr="*fp32", N="i32", T="i32",
                             NH="i32", HS="i32", g_stride="i32", x_stride="i32", r_stride="i32", c_div="i32", c_mod="i32")
            # outside the loop: the last row, the row after it and its cotangent, the weights; in it: g and the row before
            yield ("log + LayerNorm backward", (heads, size), dtype, layernorm._log_layernorm_backward, signature,
                   dict(REFERENCE=1, C_PER_TOKEN=False, R_LARGEST=largest, **shape), options, 5, 1, 1, 1, elements)
            for variant, (other, _, loads, _, stores, partials) in varied:
                yield (f"log + LayerNorm backward, {variant}", (heads, size), dtype, layernorm._log_layernorm_backward, signature,
                       dict(REFERENCE=1, C_PER_TOKEN=False, R_LARGEST=largest, **shape) | other, options, loads, stores, 1, partials,
                       elements)


def stream_cases(dtypes, widths):
    """The same of the kernels for residual streams."""
    from kernels import streams as S

    def elements(tile, options):
        return max(1, tile["ROWS"] * tile["BLOCK_D"] // (32 * options["num_warps"]))

    def weights(tile, options, vector):
        """A row of float32 weights, as a part of a tile. All threads together read it, and it may have less than 16 bytes for each; if
        it has less than a number for each, a thread reads those of the columns that it has of the tile."""
        columns = tile["BLOCK_D"] // (32 * options["num_warps"])
        return (columns if columns >= 4 else 0 if columns else vector) / elements(tile, options)

    for dtype, D in itertools.product(dtypes, widths):
        row, largest = "*" + TYPES[dtype], float(torch.finfo(getattr(torch, dtype)).max)
        sizes, blocks = dict(R="i32", D="i32", stride="i32"), dict(R="i32", D="i32", BLOCKS="i32", stride="i32")
        for n, token in ((STREAMS, False), *(((2, False), (8, False), (STREAMS, True), (8, True)) if D == VARIED else ())):
            name = ("" if n == STREAMS else f", n = {n}") + (", per token" if token else "")
            rows, block_d, options = S.read_tile(D)
            tile = dict(NS=n, ROWS=rows, BLOCK_D=block_d)
            yield ("streams read forward" + name, D, dtype, S._read_forward,
                   dict(x_ptr=row, p_ptr="*fp32", w_ptr="*fp32", b_ptr="*fp32", out_ptr=row, mean_ptr="*fp32", rstd_ptr="*fp32", **sizes,
                        p_step="i32", eps="fp32"), dict(BIAS=False, LARGEST=largest, **tile), options, n, 1,
                   weights(tile, options, 16 // getattr(torch, dtype).itemsize), 0, elements(tile, options))
            if not token:
                yield ("streams rms forward" + name, D, dtype, S._rms_forward, dict(x_ptr=row, out_ptr="*fp32", **sizes, eps="fp32"),
                       tile, options, n, 0, 0, 0, elements(tile, options))
            rows, block_d, options, held = S.read_back_tile(n, D)
            tile = dict(NS=n, ROWS=rows, BLOCK_D=block_d)
            yield ("streams read backward" + name, D, dtype, S._read_backward,
                   dict(g_ptr=row, x_ptr=row, p_ptr="*fp32", w_ptr="*fp32", mean_ptr="*fp32", rstd_ptr="*fp32", dx_ptr=row, dp_ptr="*fp32",
                        dw_ptr="*fp32", db_ptr="*fp32", **sizes, p_step="i32"),
                   dict(ONE=not token, BIAS=False, HELD=held, LARGEST=largest, STEPS=S.STEPS, **tile), options,
                   1 + n + n - held, n, weights(tile, options, 16 // getattr(torch, dtype).itemsize), weights(tile, options, 1),
                   elements(tile, options))
            rows, block_d, _, options = S.write_tile(D)
            tile = dict(NS=n, ROWS=rows, BLOCK_D=block_d)
            yield ("streams write forward" + name, D, dtype, S._write_forward,
                   dict(x_ptr=row, y_ptr=row, r_ptr="*fp32", w_ptr="*fp32", out_ptr=row, **blocks, r_step="i32", w_step="i32"),
                   dict(MIX=True, LARGEST=largest, **tile), options, n + 1, n, 0, 0, elements(tile, options))
            if not token:
                yield ("streams rms backward" + name, D, dtype, S._rms_backward,
                       dict(g_ptr="*fp32", x_ptr=row, f_ptr="*fp32", dx_ptr=row, **blocks), dict(LARGEST=largest, **tile), options,
                       n, n, 0, 0, elements(tile, options))
            rows, block_d, _, options = S.write_back_tile(n, D)
            tile = dict(NS=n, ROWS=rows, BLOCK_D=block_d)
            yield ("streams write backward" + name, D, dtype, S._write_backward,
                   dict(g_ptr=row, x_ptr=row, y_ptr=row, r_ptr="*fp32", w_ptr="*fp32", dx_ptr=row, dy_ptr=row, dr_ptr="*fp32",
                        dw_ptr="*fp32", **blocks, r_step="i32", w_step="i32"),
                   dict(MIX=True, ONE_R=not token, ONE_W=not token, X_LARGEST=largest, Y_LARGEST=largest, **tile), options,
                   2 * n + 1, n + 1, 0, 0, elements(tile, options))


def aligned(D):
    """What Triton knows of a launch on contiguous rows: are the columns, the strides multiples of 16?"""
    columns, stride = (D[1], D[0] * D[1]) if isinstance(D, tuple) else (D, D)
    return columns % 16 == 0, stride % 16 == 0


def compile_case(function, signature, constants, options, arch, D):
    """The compiled kernel as a launch on contiguous rows finds it: pointers 16-byte aligned, sizes and strides divisible by 16 if
    they are."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    signature = {**signature, **dict.fromkeys(constants, "constexpr")}
    names = function.arg_names
    columns, strides = aligned(D)
    divisible = [n for n, kind in signature.items() if kind.startswith("*") or columns and n in ("D", "HS")
                 or strides and n.endswith("stride")]
    source = ASTSource(function, {n: signature[n] for n in names}, constexprs={(names.index(n),): v for n, v in constants.items()},
                       attrs={(names.index(n),): [["tt.divisibility", 16]] for n in divisible})
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def read_cubin(cubin):
    """Registers, stack bytes and the counts of global and local accesses by width."""
    import triton
    tools = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as f:
        f.write(cubin)
        f.flush()
        said = subprocess.run([os.path.join(tools, "cuobjdump"), "-res-usage", "-sass", f.name], capture_output=True, text=True,
                              check=True).stdout
    operations = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+\s+)?([A-Z0-9_.]+)", said, re.M)
    wide = lambda prefix: sum(o.startswith(prefix) and ".128" in o for o in operations)
    return {"registers": int(re.search(r"REG:(\d+)", said).group(1)), "stack": int(re.search(r"STACK:(\d+)", said).group(1)),
            "atomics": sum(o.startswith(("ATOM", "RED")) for o in operations),
            "local": sum(o.startswith(("LDL", "STL")) for o in operations),
            "loads": sum(o.startswith("LDG") for o in operations), "loads_16_bytes": wide("LDG"),
            "stores": sum(o.startswith("STG") for o in operations), "stores_16_bytes": wide("STG")}


def expected(row_tiles, float32_tiles, elements, dtype):
    """16-byte accesses of so many passes, or None where a thread has less than 16 bytes of a row."""
    size = getattr(torch, dtype).itemsize
    if elements * size < 16:
        return None
    return row_tiles * elements * size // 16 + int(float32_tiles * elements * 4) // 16


def scalars(constants, elements, dtype):
    """At most so many other loads or stores: c, limit, means and their gradients; R, w, p of as many rows as a thread may have."""
    n = constants.get("NS", 0)
    return 12 + n * (n + 2) * max(1, elements * getattr(torch, dtype).itemsize // 16)


def loses_nan(ptx):
    """Clamps to the largest number of a stored dtype that would turn a NaN into it."""
    largest = "(?:FF7FFFFF|7F7FFFFF|FF7F0000|7F7F0000|C77FE000|477FE000)"
    return len(re.findall(rf"\b(?:max|min)\.f32\s[^;]*0f{largest}", ptx, re.I))


def rows_of(archs, dtypes, widths, names=("",)):
    for name, D, dtype, function, signature, constants, options, loads, stores, w_loads, w_stores, elements in itertools.chain(
            cases(dtypes, widths), stream_cases(dtypes, widths)):
        elements = elements if all(aligned(D)) else 0  # then accesses are of a number each
        for arch in archs if any(part in name for part in names) else ():
            compiled = compile_case(function, signature, constants, options, arch, D)
            code = read_cubin(compiled.asm["cubin"])
            yield {"kernel": name, "D": D, "dtype": dtype, "arch": arch, "warps": options["num_warps"], **code,
                   "scalars": scalars(constants, elements, dtype), "loses_nan": loses_nan(compiled.asm["ptx"]),
                   "expected_loads": expected(loads, w_loads, elements, dtype),
                   "expected_stores": expected(stores, w_stores, elements, dtype)}


@exit_cleanly
def main(argv):
    config, _ = configurator.resolve(argv, MachineCodeConfig, script_doc=__doc__)
    if config.json:
        paths.file_to_write(config.json, f"json = '{config.json}'")
    import kernels as K
    if K.INTERPRETED:
        raise UserError("TRITON_INTERPRET in the environment makes Triton interpret, not compile; unset it")
    for dtype in config.dtype or ():
        if dtype not in TYPES:
            raise UserError(f"dtype {dtype!r}: there are {', '.join(TYPES)}")
    for width in config.width or ():
        if not 1 <= width <= K.MAX_D:
            raise UserError(f"width {width}: the kernels take 1 to {K.MAX_D}")
    for arch in config.arch or ():
        if not 80 <= arch <= 90:
            raise UserError(f"arch {arch}: the compute capabilities 80 to 90 (A100 to H100) are compiled for")
    rows = []
    print(f"{'kernel':38}{'D':>10} {'dtype':9}{'sm':>4}{'warps':>6}{'regs':>6}{'stack':>6}{'LDG.128':>9}{'wanted':>7}{'STG.128':>9}"
          f"{'wanted':>7}")
    for row in rows_of(config.arch or (80, 90), config.dtype or TYPES, config.width or WIDTHS, config.kernel or ("",)):
        rows.append(row)
        D = "x".join(map(str, row["D"])) if isinstance(row["D"], tuple) else row["D"]
        print(f"{row['kernel']:38}{D:>10} {row['dtype']:9}{row['arch']:>4}{row['warps']:>6}{row['registers']:>6}{row['stack']:>6}"
              f"{row['loads_16_bytes']:>9}{row['expected_loads'] or '-':>7}{row['stores_16_bytes']:>9}"
              f"{row['expected_stores'] or '-':>7}", flush=True)
    if not rows:
        raise UserError(f"no kernel has {' or '.join(map(repr, config.kernel))} in its name")
    if config.json:
        paths.make_folder_of(config.json)
        write_json(config.json, rows)
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
