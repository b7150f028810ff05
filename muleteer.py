"""Muleteer's command line: serve a model, look after its server, and look at models without one.

Runs in:  a process of its own; `serve` becomes the supervisor.
"""

import argparse
import fcntl
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import doctor
import reload
import trial
from catalog import Catalog
from instance import readyz
from nginx import StartError
from serving.errors import ModelError, SettingsError, SourceError
from serving.model import ModelFolder
from serving.plan import POLICY
from serving.settings import Settings
from status import console, tables, watch
from supervisor import SIGNALS, Supervisor, go_home, ini_of, run_dir_of
from trial import TrialFailed

HELP = """\
Serves a model over HTTP, and gRPC if a port is set: nginx, uWSGI, and long-lived mules that each hold a copy of it.

Environment:
  HOST        address to listen on (127.0.0.1)
  PORT        port to listen on (8080)
  GRPC_PORT   port for gRPC (grpc_port in uwsgi.ini)
  MODEL       folder of the model, or its URL: s3://, gs://, https://, models:/, runs:/ (model in uwsgi.ini)
  MULETEER_STORE   folder for models that were fetched (~/.cache/muleteer)
  INI         the uwsgi.ini to use (the one beside this program)
  RUN_DIR     folder for sockets, pid files and nginx's own files (run/PORT)
  LOG_DIR     folder for access.log and server.log (unset: standard output and error)
  MULES, WORKERS, THREADS, QUEUE, SERVING_<NAME>   override uwsgi.ini

Exits with 0 when all is well, 1 when it is not, and 2 when an argument or a setting is wrong or no server runs;
`muleteer COMMAND --help` tells more.
"""
SERVE = """\
Starts nginx and uWSGI, tells when it is ready, and stays.  This is what happens without a command, too.

SIGTERM and SIGINT drain: nginx stops accepting and finishes, then uWSGI does; a second one ends it at once.  Exits with
0 after a stop, 2 when a setting is wrong, 1 when nginx or uWSGI ends by itself or no replica can load the model.
"""
RELOAD = """\
Asks the server of PORT or RUN_DIR to take what has changed without losing a request, and follows it.  A new version of
the model, or the same one anew: its replicas are replaced one after another.  A new uwsgi.ini: a second uWSGI starts
beside the first, takes over when all of its replicas are ready, and the first one finishes.  When it fails, what served
serves on.  Exits with 0 when it is done, 1 when it failed, 2 when no server runs there.  SIGHUP does the same, and
SIGUSR1 as --all.  The environment is that of the start.
"""
STATUS = """\
Shows what the server of PORT or RUN_DIR serves; with --watch each second, until Ctrl-C.  Exits with 0 when it is ready,
1 when it is not, 2 when none runs.
"""
FETCH = """\
Brings a version from where MODEL says it is into the store of this machine, unless it is there already, and prints its
folder: a server started with the same MODEL serves it from there, also while the network is gone.  Exits with 1 when it
could not be brought.
"""
LIST = """\
Shows the versions of a model, with their labels and the sums by which they are told apart.  Exits with 2 when there is
no model, or nothing to say so.
"""
VERIFY = """\
Loads a version as a replica would, predicts its sample, and compares with answer.json where there is one.  Exits with 0
when it could be served, 1 when it could not.
"""
PREDICT = """\
Loads the model, answers the body in FILE as POST /predict would, and ends.  Exits with 1 when there is no answer.
"""
DOCTOR = """\
Looks at this machine, at uwsgi.ini and at the model, which it loads as a mule would, and says what is wrong and what to
do: programs, limits of the kernel, sockets that others can reach, memory and cores (the container's, in one), and what
processes would have of each other after a fork.  Nothing is changed.  Exits with 0 when nothing is wrong, though there
may be warnings, 1 otherwise.
"""
TUNE = """\
Finds how many mules, workers, threads and rows of a batch hold a promise, and says why: measures the model alone, then
what a request costs around it, ranks what could be right by a simulation of the pool, and lets real servers judge under
load that comes as clients do.  They are its own, on ports of their own, and end with it; one that runs is not touched,
but disturbs, as all else on the machine does.

  muleteer tune --slo p99=50ms                      the settings with the highest rate that holds it
  muleteer tune --slo p99=50ms --rate 400           the fewest mules that hold it at 400 requests a second
  muleteer tune --slo p99=50ms --rate 400 --write   and put them into uwsgi.ini, comments kept

A request that is refused counts as one that comes too late.  The report has plots and the reasons in words; beside it
lies all that was measured as JSON, which `capacity` reads.  Exits with 0 when a setting holds the promise, 1 when none
does, 2 when an argument or a setting is wrong or nothing could be measured, 130 when it was interrupted.
"""
CAPACITY = """\
Says what rate the present settings hold a promise at, and what other counts of mules would, by the same simulation as
`tune` and without load.  It reads what `tune` measured where that is of this model and this machine, and else measures
the model alone, which takes seconds.  Exits with 0, 1 where no rate holds it, 2 when an argument or a setting is wrong
or nothing could be measured.
"""
CONFORM = """\
Asks any server, ours or another, what the documents of its protocols say that it answers, and prints a line for each
case, to be pasted into a bug report.  A case that fails tells what was expected and what came.  The cases are the files
in conform/: what is sent, what may come back, and who says so.  Nothing is loaded, unloaded or changed.

The model is the first that GET /v1/models or POST /v2/repository/index tells; what is sent are zeros and empty strings,
as GET /v2/models/NAME or GET /v1/models/NAME/metadata tells what it takes.  Of a server that tells neither say it:

  muleteer conform http://127.0.0.1:5000 --dialect mlflow --sample sample.json

Without --dialect those are asked at whose paths there is something.  Exits with 0 when all passed, 1 when some failed,
2 when nothing could be asked.
"""
COMPLETION = """\
Prints what a shell needs to complete commands, options and files.  In ~/.bashrc, or in ~/.zshrc after compinit:

  eval "$(muleteer completion bash)"
  eval "$(muleteer completion zsh)"

fish loads ~/.config/fish/completions/muleteer.fish, and tcsh what a line in ~/.tcshrc sources.
"""
# of what these take, a shell knows files and folders
FILES = {"file": "FILE", "sample": "FILE", "inputs": "FILE", "report": "FILE", "model": "DIRECTORY"}


class Failed(Exception):
    """A command has failed, in one sentence."""


def main(arguments: Sequence[str]) -> int:
    """Run a command.  Returns the exit status: 2 for a wrong argument or setting."""
    for stream in (1, 2):
        # several processes write to them: where they are files, each line goes to the end
        fcntl.fcntl(stream, fcntl.F_SETFL, fcntl.fcntl(stream, fcntl.F_GETFL) | os.O_APPEND)
    asked = _parser().parse_args(arguments or ["serve"])
    environ = dict(os.environ)
    for name in ("model", "host", "port", "mules"):
        if getattr(asked, name, None) is not None:
            environ[name.upper()] = str(getattr(asked, name))
    if asked.run is not _serve:
        # Ctrl-C ends this process alone
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        status: int = asked.run(asked, environ)
        return status
    except (Failed, TrialFailed) as error:
        # of those 1 says that nothing holds the promise
        return _refuse(2 if asked.run in (_tune, _capacity) else 1, error)
    except SettingsError as error:
        return _refuse(2, error)
    except (ModelError, SourceError, StartError) as error:
        return _refuse(2 if asked.run in (_serve, _list, _tune, _capacity) else 1, error)


def _parser() -> argparse.ArgumentParser:
    raw: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser("muleteer", description=HELP, **raw)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[..., int], short: str, text: str, within: Any = commands) -> Any:
        command = within.add_parser(name, help=short, description=text, **raw)
        command.set_defaults(run=run)
        return command

    serve = add("serve", _serve, "serve a model (the default)", SERVE)
    serve.add_argument("--model", help="folder or URL of the model (MODEL)")
    serve.add_argument("--host", help="address to listen on (HOST)")
    serve.add_argument("--mules", help="how many replicas (MULES)")
    again = add("reload", _reload, "let the server take what has changed", RELOAD)
    again.add_argument("--all", action="store_true", help="everything anew: the code too, other inputs or outputs")
    which = again.add_mutually_exclusive_group()
    told = "serve these from now on, also after a new start: 2, or 2,3, latest, all; the way back"
    which.add_argument("--version", type=_policy, metavar="VERSIONS", help=told)
    which.add_argument(
        "--unpin", action="store_const", const="", dest="version", help="serve what version_policy says again"
    )
    status = add("status", _status, "show what the server serves", STATUS)
    models = commands.add_parser("models", help="look at models", description="Looks at models, without a server.")
    looks = models.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listing = add("list", _list, "the versions that there are", LIST, looks)
    fetch = add("fetch", _fetch, "bring a version to this machine", FETCH, looks)
    verify = add("verify", _verify, "load a version and try it", VERIFY, looks)
    checks = add("doctor", _doctor, "say what is wrong with this machine, uwsgi.ini or the model", DOCTOR)
    predict = add("predict", _predict, "answer one request without a server", PREDICT)
    predict.add_argument("file", metavar="FILE", help="a body as for POST /predict; - for standard input")
    conform = add("conform", _conform, "ask a server whether it speaks its protocols", CONFORM)
    conform.add_argument("url", metavar="URL", help="of the server, as http://127.0.0.1:8080")
    names = "tensorflow_serving, open_inference, mlflow, sagemaker, torchserve or predict; may be repeated"
    conform.add_argument("--dialect", action="append", metavar="NAME", help=names)
    conform.add_argument("--model", dest="asked_model", metavar="NAME", help="the model's name (the first one)")
    conform.add_argument("--sample", type=Path, metavar="FILE", help="one instance in JSON, {input: value} (zeros)")
    conform.add_argument("--timeout", type=float, default=10, metavar="SECONDS", help="for each answer (10)")
    form = conform.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print tables, with what says so")
    completion = add("completion", _completion, "print what a shell needs to complete commands", COMPLETION)
    completion.add_argument("shell", choices=("bash", "zsh", "fish", "tcsh"), metavar="SHELL", help="%(choices)s")
    tune = add("tune", _tune, "find the counts that hold a promise, and say why", TUNE)
    tune.add_argument(
        "--rate", type=_positive, default=0.0, metavar="N", help="requests a second to be held (the most)"
    )
    tune.add_argument("--inputs", type=Path, metavar="FILE", help="recorded requests, a body a line (like the sample)")
    tune.add_argument(
        "--minutes", type=_positive, default=0.0, metavar="N", help="how long it may take (3 to 9, p99.9 more)"
    )
    tune.add_argument("--write", action="store_true", help="put what is found into uwsgi.ini")
    capacity = add("capacity", _capacity, "say what rate holds a promise, without load", CAPACITY)
    capacity.add_argument("--mules", dest="counts", type=int, nargs="+", metavar="N", help="these counts beside it")
    for command in (tune, capacity):
        command.add_argument(
            "model", nargs="?", metavar="MODEL", help="its folder or URL (MODEL, or as uwsgi.ini says)"
        )
        command.add_argument("--slo", required=True, metavar="P=TIME", help="the promise: p99=50ms, p99.9=0.2s")
        command.add_argument("--report", type=Path, metavar="FILE", help="where the report lies (tune.html in RUN_DIR)")
    for command in (serve, again, status, checks, tune, capacity):
        command.add_argument("--port", help="the server's port (PORT)")
    for command in (listing, fetch, verify, predict, checks):
        command.add_argument("--model", help="folder or URL of the model (MODEL, or model in uwsgi.ini)")
    for command in (fetch, verify, predict):
        command.add_argument("--version", type=int, help="which version (the highest)")
    status_form = status.add_mutually_exclusive_group()
    status_form.add_argument("--watch", action="store_true", help="keep it live, with rates, until Ctrl-C")
    for command in (again, status_form, listing, fetch, verify, checks, form, tune, capacity):
        command.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e7:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _policy(text: str) -> str:
    if not POLICY.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a version, numbers, latest, latest 2 or all")
    return text


# ---- the server


def _serve(asked: argparse.Namespace, environ: dict[str, str]) -> int:
    # sockets, logs and pid files are for this user and group
    os.umask(0o027)
    # each thread that can wait needs a file
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    status = Supervisor(environ).run()
    sys.stdout.flush()
    sys.stderr.flush()
    # a fetch that was broken off may have threads that go on
    os._exit(status)


def _reload(asked: argparse.Namespace, environ: dict[str, str]) -> int:
    return reload.ask(run_dir_of(environ), asked.all, asked.version, asked.json)


def _status(asked: argparse.Namespace, environ: dict[str, str]) -> int:
    run_dir = run_dir_of(environ)
    if not reload.server_pid(run_dir):
        return _refuse(2, f"no server runs in {run_dir}; set PORT or RUN_DIR as for serve")
    ready = readyz(run_dir / "control.sock")
    status = ready.get("status", "not ready")
    if asked.json:
        print(json.dumps(ready or {"status": status}))
        return int(status != "ready")
    if asked.watch:
        watch(lambda: (readyz(run_dir / "control.sock"), reload.pinned(run_dir)))
    else:
        console().print(tables(ready, reload.pinned(run_dir)))
    return int(status != "ready")


def _doctor(asked: argparse.Namespace, environ: dict[str, str]) -> int:
    ini, run_dir = ini_of(environ), run_dir_of(environ)
    go_home(environ)
    found = []
    for finding in doctor.examine(ini, run_dir, environ):
        found.append(finding)
        if not asked.json:
            print(finding.line(), flush=True)
    if asked.json:
        print(json.dumps({"findings": [finding._asdict() for finding in found]}))
    return int(any(finding.level is doctor.Level.WRONG for finding in found))


# ---- models


def _settings(environ: dict[str, str]) -> Settings:
    ini = ini_of(environ)
    go_home(environ)
    return Settings.read(ini, environ)


def _catalog(settings: Settings, environ: dict[str, str]) -> Catalog:
    return Catalog(settings, environ, run_dir_of(environ), lambda text: print(f"muleteer: {text}", file=sys.stderr))


def _folder(asked: argparse.Namespace, settings: Settings, environ: dict[str, str]) -> ModelFolder:
    """The version that is asked for, or the highest; fetched, if it is elsewhere."""
    catalog = _catalog(settings, environ)
    found = catalog.look().identities
    version = max(found) if asked.version is None else asked.version
    if version not in found:
        raise Failed(
            f"there is no version {version} in {settings.model}; there are {', '.join(map(str, sorted(found)))}"
        )
    placed = catalog.place(version, found[version])
    return ModelFolder.open(placed.path, placed.root, version)


def _list(asked: argparse.Namespace, environ: dict[str, str]) -> int:
    settings = _settings(environ)
    look = _catalog(settings, environ).look()
    labels = {
        version: sorted(label for label, one in look.labels.items() if one == version) for version in look.identities
    }
    if asked.json:
        found = [
            {"version": version, "labels": labels[version], "identity": identity}
            for version, identity in sorted(look.identities.items())
        ]
        about = {"model": settings.model, "version_policy": settings.version_policy, "versions": found}
        print(json.dumps(about | {"stale": look.reason}))
        return 0
    print(f"{settings.model}, version_policy = {settings.version_policy}")
    rows = [[version, ", ".join(labels[version]), look.identities[version][:16]] for version in sorted(look.identities)]
    _table(["version", "labels", "identity"], rows)
    if look.stale:
        print(f"This is what it had when it last answered: {look.reason}")
    return 0


def _fetch(asked: argparse.Namespace, environ: dict[str, str]) -> int:
    folder = _folder(asked, _settings(environ), environ)
    about = {"name": folder.name, "version": folder.version, "path": str(folder.path)}
    print(json.dumps(about) if asked.json else folder.path)
    return 0


def _verify(asked: argparse.Namespace, environ: dict[str, str]) -> int:
    settings = _settings(environ)
    folder = _folder(asked, settings, environ)
    found = trial.apart(trial.try_out, folder, settings)
    if asked.json:
        print(json.dumps(found))
        return 0
    print(f"{folder.name}, version {folder.version} ({found['engine']}), {folder.path}")
    print(f"  takes   {', '.join(found['inputs'])}")
    print(f"  gives   {', '.join(found['outputs'])}")
    for name, signature in found["others"].items():
        print(f"  by {name!r}: {signature}")
    times = ", ".join(f"{ms:.2f} ms for {rows} {'row' if rows == '1' else 'rows'}" for rows, ms in found["ms"].items())
    print(f"  loads   in {found['load_s']:.1f} s; then it takes {times}")
    print(f"  memory  {found['mb']} MB, {found['model_mb']} of them for the model and its framework")
    print(f"  answer  {'as answer.json says' if found['compared'] else 'not compared: there is no answer.json'}")
    return 0


def _predict(asked: argparse.Namespace, environ: dict[str, str]) -> int:
    try:
        body = sys.stdin.buffer.read() if asked.file == "-" else Path(asked.file).read_bytes()
    except OSError as error:
        raise Failed(f"{asked.file}: {error.strerror}") from error
    settings = _settings(environ)
    print(trial.apart(trial.answer, _folder(asked, settings, environ), settings, body))
    return 0


# ---- counts


def _tune(asked: argparse.Namespace, environ: dict[str, str]) -> int:
    from load.loadgen import NoCompiler
    from tuning.ini import IniError
    from tuning.search import TooLittleTime
    from tuning.stack import StackFailed
    from tuning.tune import TuneFailed, interruptible, tune

    report, inputs = asked.report and asked.report.absolute(), asked.inputs and asked.inputs.absolute()
    try:
        interruptible()
        about = _tuned(asked, environ)
        return tune(about, asked.rate, asked.minutes, inputs, report, asked.write, asked.json)
    except KeyboardInterrupt:
        return _refuse(130, "interrupted; what was started has ended")
    except (NoCompiler, IniError, TooLittleTime, TuneFailed) as error:
        return _refuse(2, error)
    except StackFailed as error:
        raise Failed(str(error)) from error


def _capacity(asked: argparse.Namespace, environ: dict[str, str]) -> int:
    from tuning.tune import capacity

    report = asked.report and asked.report.absolute()
    return capacity(_tuned(asked, environ), asked.counts or (), report, asked.json)


def _tuned(asked: argparse.Namespace, environ: dict[str, str]) -> Any:
    """What both are about."""
    from tuning.promise import Promise, PromiseError
    from tuning.tune import Asked

    try:
        promise = Promise.parse(asked.slo)
    except PromiseError as error:
        raise SettingsError(f"--slo: {error}") from error
    asked.version = None
    settings = _settings(environ)
    folder = _folder(asked, settings, environ)
    return Asked(folder, settings, ini_of(environ), run_dir_of(environ), environ, promise)


# ---- protocols


def _conform(asked: argparse.Namespace, environ: dict[str, str]) -> int:
    try:
        import conform
    except ModuleNotFoundError as error:
        return _refuse(2, f"conform needs {error.name}, which is not installed: pip install '.[conform]'")
    try:
        report = conform.ask(asked.url, asked.dialect or (), asked.asked_model, asked.sample, asked.timeout)
    except conform.ConformError as error:
        return _refuse(2, error)
    lines = [json.dumps(report.as_dict())] if asked.json else report.markdown() if asked.markdown else report.lines()
    print("\n".join(lines))
    return int(report.failed)


# ---- words


def _completion(asked: argparse.Namespace, environ: dict[str, str]) -> int:
    import shtab

    parser = _parser()
    for action in _actions(parser):
        if kind := FILES.get(action.dest):
            action.complete = getattr(shtab, kind)  # type: ignore[attr-defined]
    print(shtab.complete(parser, asked.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All that a parser takes, and its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    lines = [head, *([str("" if cell is None else cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _refuse(status: int, error: object) -> int:
    print(f"muleteer: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
