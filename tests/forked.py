"""
Scripts in processes of their own that start in milliseconds: forked from one that has imported torch, which takes seconds, and not more
than that. What a start itself does is tested with real processes (test_startup.py, test_parallel.py and others).
"""
import importlib
import multiprocessing
import multiprocessing.forkserver
import os
import pathlib
import resource
import signal
import socket
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
processes = multiprocessing.get_context("forkserver")
# torch._dynamo: the optimizers import it at their first step
processes.set_forkserver_preload(["torch._dynamo", "train", "data.fineweb.prepare", "datasets", "fineweb_shards"])


def start_server():
    """With these folders on its path: where it imports what is named above."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [before])])
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def _body(module, args, out, err, largest_file, environment):
    os.environ.update(environment)
    if "LOCAL_RANK" in environment:  # common/errors.py reads it when it is imported
        importlib.import_module("common.errors")._speaker["silent"] = environment["LOCAL_RANK"] != "0"
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(ROOT)
    if largest_file:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    importlib.import_module(module).main(args)


class Forked:
    """Of subprocess.Popen what the tests use. largest_file: bytes that a file may have, as RLIMIT_FSIZE has it. environment: added
    to this process's."""

    def __init__(self, module, args, largest_file=None, environment=None):
        start_server()
        self.files = [tempfile.NamedTemporaryFile("r") for _ in ("stdout", "stderr")]
        self.process = processes.Process(target=_body, args=(
            module, [str(a) for a in args], *(f.name for f in self.files), largest_file, environment or {}))
        self.process.start()
        self.pid = self.process.pid

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        return self.process.exitcode

    def wait(self, seconds=300):
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"process {self.pid} goes on"
        return self.process.exitcode

    def communicate(self):
        """(stdout, stderr), when it has ended."""
        self.wait()
        return tuple(f.read() for f in self.files)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if error[0]:
            self.kill()
        self.wait()


def ranks(number, module, args, **options):
    """So many processes with the environment that torchrun gives them. Nothing watches them: one that dies leaves the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [Forked(module, args, **options, environment={
        "RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}) for i in range(number)]
