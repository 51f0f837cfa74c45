"""The card, and what it can do at most: a device-to-device copy, a bf16 matrix product. All else is compared with them."""

import shutil
import subprocess
import time

import bench_kernels
import torch
from bench_model import synchronize

from gpu_parts import Job
from training.run_directory import environment

WATCHED = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu", "power.draw", "power.limit")


def jobs(settings):
    return [Job("card"), Job("copy"), Job("matrix product"), Job("launches")]


def workers(settings):
    return 1


def run(job, settings, record):
    {"card": card, "copy": copies, "matrix product": products, "launches": launches}[job.name](settings, record)


def smi(device):
    """name -> what nvidia-smi says of this card now; {} without it, or where it does not answer"""
    if not shutil.which("nvidia-smi"):
        return {}
    # by its number there, not here: CUDA_VISIBLE_DEVICES may leave some out
    card = ["-i", f"GPU-{torch.cuda.get_device_properties(device).uuid}"] if device.startswith("cuda") else []
    command = ["nvidia-smi", *card, f"--query-gpu={','.join(WATCHED)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    lines = done.stdout.strip().splitlines()
    return dict(zip(WATCHED, map(str.strip, lines[0].split(",")))) if done.returncode == 0 and lines else {}


def card(settings, record):
    import triton

    about = environment("python bench/gpu.py", settings.device, torch.get_num_threads(), 1)
    row = {k: about[k] for k in ("time", "platform", "cpus", "python", "torch", "cuda", "git_commit", "git_dirty")}
    row.update(card="cpu", triton=triton.__version__, name=bench_kernels.hardware(settings.device), **smi(settings.device))
    if settings.cuda:
        found = torch.cuda.get_device_properties(settings.device)
        row.update(
            card=found.name,
            capability=f"{found.major}.{found.minor}",
            multiprocessors=found.multi_processor_count,
            memory_GiB=found.total_memory / 2**30,
            L2_MiB=getattr(found, "L2_cache_size", 0) / 2**20,
        )
    record(**row)


def copies(settings, record):
    for size in (2**16,) if settings.quick else (2**26, 2**28, 2**30, 2**32):
        record(
            what="copy",
            bytes=size,
            GB_s=bench_kernels.copy_bandwidth(settings.device, 3 if settings.quick else 15, size),
            **smi(settings.device),
        )


def products(settings, record):
    """On random data: on zeros a card draws less power, and is faster."""
    sizes = (
        [(64, 64, 64)] if settings.quick else [(8192, 8192, 8192), (32768, 768, 3072), (32768, 768, 50304), (32768, 1024, 4096)]
    )
    for m, k, n in sizes:
        a, b = (torch.randn(size, device=settings.device, dtype=torch.bfloat16) for size in ((m, k), (k, n)))
        for _ in range(3):
            a @ b
        seconds = bench_kernels.quantiles(lambda: a @ b, 3 if settings.quick else 15, settings.device)[0]
        record(what="matrix product", shape=f"{m} x {k} x {n}", TFLOP_s=2 * m * k * n / seconds / 1e12, **smi(settings.device))


def launches(settings, record):
    """Microseconds that one small kernel takes of the host, and of a stream of them"""
    x, count = torch.zeros(1, device=settings.device), 200 if settings.quick else 5000
    for _ in range(3):
        x += 1
    synchronize(settings.device)
    began = time.perf_counter()
    for _ in range(count):
        x += 1
    host = time.perf_counter() - began
    synchronize(settings.device)
    record(what="launch", host_us=1e6 * host / count, stream_us=1e6 * (time.perf_counter() - began) / count)
