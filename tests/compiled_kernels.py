"""What the tests of kernels/ ask of machine code for GPUs that are not here (bench/machine_code.py)."""
import json
import os
import subprocess
import sys

from running import ROOT


def machine_code(sizes, tmp_path):
    """The rows that bench/machine_code.py finds with each of these lists of arguments. (One process for all of them.)"""
    environment = {**{k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    each = """if True:
        import json, sys
        sys.path.insert(0, sys.argv[1])
        import machine_code
        for arguments in json.loads(sys.argv[2]):
            try:
                machine_code.main(arguments)
            except SystemExit as end:
                if end.code:
                    raise"""
    paths = [tmp_path / f"code{i}.json" for i in range(len(sizes))]
    lines = [[*arguments, f"--json={path}"] for arguments, path in zip(sizes, paths)]
    run = subprocess.run([sys.executable, "-c", each, os.path.join(ROOT, "bench"), json.dumps(lines)],
                         capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return [row for path in paths for row in json.loads(path.read_text())]


def check_machine_code(found):
    """-> names of the kernels whose 16-byte accesses could be counted"""
    counted = set()
    for row in found:
        assert row["stack"] == 0 and row["local"] == 0, row
        assert row["atomics"] == 0 and row["loses_nan"] == 0, row  # sums in a fixed order; a NaN is stored as one
        for kind in ("loads", "stores"):
            if row[f"expected_{kind}"]:  # a thread has 16 bytes of each row
                assert row[f"{kind}_16_bytes"] == row[f"expected_{kind}"], row
                assert row[kind] - row[f"{kind}_16_bytes"] <= row["scalars"], row
                counted.add(row["kernel"])
    return counted
