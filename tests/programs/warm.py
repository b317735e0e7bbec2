"""Runs Python programs in processes that have imported torch and its like already: seconds less for each of them.

    python -IS tests/programs/warm.py -c CODE | -m MODULE ... | SCRIPT ...

stands for `python -c CODE`, and so on. A server imports the libraries once and forks for every program; this package
is not among them. The program has the arguments, the folder, the environment and the open files of the command, which
ends when it ends and as it ends, hands it the signals that it gets, and takes it with it when it is killed.

The server is started by the first command, in the folder that the variable WARM_PYTHON names, and ends with the
process whose number is behind the folder's last dash. `prepare` makes that folder, for the tests.
"""
import os
import signal
import socket
import sys

WARM = [sys.executable, "-IS", os.path.abspath(__file__)]   # of a command, in place of `python`
PASSED = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT
LIBRARIES = """torch torchvision torch._dynamo safetensors.torch numpy scipy.stats scipy.optimize pandas PIL.Image
    sklearn.datasets sklearn.manifold sklearn.metrics sklearn.neighbors matplotlib.pyplot
    matplotlib.backends.backend_agg seaborn jinja2 yaml ipykernel.zmqshell IPython.core.completer
    papermill.cli""".split()
AGAIN = "papermill", "tqdm", "mixsupcon"   # imported by each program for itself: they look at what it is


def prepare():
    "The folder of a server that ends with this process; Jupyter's kernels are started by it from now on."
    import json
    import tempfile
    place = os.environ["WARM_PYTHON"] = tempfile.mkdtemp(prefix="warm-", suffix=f"-{os.getpid()}")
    usual = os.path.join(sys.prefix, "share", "jupyter", "kernels", "python3", "kernel.json")
    if os.path.exists(usual):
        with open(usual) as file:
            spec = json.load(file)
        os.makedirs(f"{place}/kernels/python3")
        with open(f"{place}/kernels/python3/kernel.json", "w") as file:
            json.dump(spec | dict(argv=[*WARM, *spec["argv"][1:]]), file)
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [place, os.environ.get("JUPYTER_PATH")]))
    return place


def cold(env=os.environ):
    "An environment in which Jupyter starts kernels as it does elsewhere."
    return {name: value for name, value in env.items() if name != "JUPYTER_PATH"}


# ---- the command

def ask(words):
    "Have the server run a program; its exit status, negative for a signal."
    with connected(os.environ["WARM_PYTHON"]) as line:
        for number in PASSED:
            signal.signal(number, lambda number, _: line.send(bytes([number])))
        request = "\0\0".join(["\0".join(words), os.getcwd(), "\0".join(f"{k}={v}" for k, v in os.environ.items())])
        data = request.encode("utf-8", "surrogateescape")
        socket.send_fds(line, [len(data).to_bytes(8, "big")], [0, 1, 2])
        line.sendall(data)
        answer = line.recv(8)
    return int.from_bytes(answer, "big", signed=True) if answer else -signal.SIGKILL


def connected(place):
    "A line to the server, which is started if it does not run."
    import fcntl
    import time
    line = socket.socket(socket.AF_UNIX)
    with open(f"{place}/lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)   # one of several first commands starts it
        if not os.path.exists(f"{place}/socket"):
            start(place)
        while not os.path.exists(f"{place}/socket"):
            time.sleep(.05)
    line.connect(f"{place}/socket")
    return line


def start(place):
    "The server, in a session of its own, with what it says in a file."
    import subprocess
    with open(f"{place}/said", "ab") as said:
        env = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"} | dict(OMP_NUM_THREADS="1")
        subprocess.Popen([sys.executable, __file__, "--serve", place], cwd="/", env=env, start_new_session=True,
                         stdin=subprocess.DEVNULL, stdout=said, stderr=said)


# ---- the server

def serve(place):
    "Fork for every command, while the process lives that the folder is named after. Returns in a program's process."
    import gc
    import select
    import shutil
    warm_up()
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"{place}/new")
    server.listen(64)
    os.rename(f"{place}/new", f"{place}/socket")
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)   # who has ended goes
    while is_alive(int(place.rpartition("-")[2])):
        if select.select([server], [], [], 1)[0]:
            line, _ = server.accept()
            if not os.fork():
                server.close()
                return supervise(line)
            line.close()
    shutil.rmtree(place, ignore_errors=True)
    os._exit(0)


def warm_up():
    "Import the libraries, with one thread: a process with several must not be forked."
    import importlib
    import threading
    for name in LIBRARIES:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.split(".")[0] in AGAIN]:
        del sys.modules[name]
    assert threading.active_count() == 1, threading.enumerate()


def is_alive(process):
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


def supervise(line):
    "Hand signals to the program and its status to the command. Returns in the program's process, with its request."
    import select
    import time
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, files, _, _ = socket.recv_fds(line, 8, 3)
    data = line.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
    program = os.fork()
    if not program:
        line.close()
        return data.decode("utf-8", "surrogateescape"), files
    for file in files:
        os.close(file)
    while not (ended := os.waitpid(program, os.WNOHANG))[0]:
        if select.select([line], [], [], .02)[0]:
            numbers = line.recv(64)
            for number in numbers or [signal.SIGKILL]:   # the command is no more
                os.kill(program, number)
            if not numbers:
                time.sleep(.02)
    try:
        line.send(os.waitstatus_to_exitcode(ended[1]).to_bytes(8, "big", signed=True))
    except OSError:
        pass
    os._exit(0)


# ---- the program's process

def become(request, files):
    "Take over the arguments, the folder, the environment and the files of the command."
    import random
    import numpy
    words, folder, env = request.split("\0\0", 2)
    os.setsid()
    for i, file in enumerate(files):
        os.dup2(file, i)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(line.partition("=")[::2] for line in env.split("\0"))
    random.seed()
    numpy.random.seed()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, number in dict(stdin=0, stdout=1, stderr=2).items():
        buffering = 1 if name == "stderr" or os.isatty(number) else -1
        errors = "backslashreplace" if name == "stderr" else "strict"
        file = open(number, "r" if name == "stdin" else "w", buffering, "utf-8", errors, closefd=False)
        setattr(sys, name, file)
        setattr(sys, f"__{name}__", file)
    words = words.split("\0")
    kernel = "ipykernel_launcher" in words
    # what matplotlib and pandas look at when they are imported
    if backend := os.environ.get("MPLBACKEND", "module://matplotlib_inline.backend_inline" if kernel else ""):
        sys.modules["matplotlib"].rcParams["backend"] = backend
    if kernel:
        sys.modules["pandas"].set_option("display.max_columns", 20)
    return words


def execute(words):
    "What `python` does with these words."
    import runpy
    import types
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    first = "" if words[0] == "-c" else os.getcwd() if words[0] == "-m" else os.path.dirname(os.path.abspath(words[0]))
    sys.path[:1] = [first, *(path for path in paths if path and path not in sys.path)]
    if words[0] == "-m":
        sys.argv = words[1:]
        return runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    sys.argv = words if words[0] != "-c" else ["-c", *words[2:]]
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    code = words[1] if words[0] == "-c" else open(words[0], "rb").read()
    if words[0] != "-c":
        module.__file__ = words[0]
    exec(compile(code, "<string>" if words[0] == "-c" else words[0], "exec"), module.__dict__)


def run(words):
    "Execute, and end as a process of its own ends, but for the clearing up of memory."
    import atexit
    import threading
    status = 0
    try:
        execute(words)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException as error:
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename in (__file__, "<frozen runpy>"):
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    leave(status)


def leave(status):
    "Exit at once; with a negative status by that signal."
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status % 256)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        run(become(*serve(sys.argv[2])))
    leave(ask(sys.argv[1:]))
