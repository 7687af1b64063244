"""`lorchestra submit` and `logs`: a sweep on Kubernetes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.commands.options import add_cluster_options, open_cluster, tell_line
from orchestrator.sweepfile.changes import add_set_option

if TYPE_CHECKING:
    from orchestrator.cluster.api import Kube


def add_cluster_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add a parser for each command."""
    submit = commands.add_parser(
        "submit",
        help="send a sweep to a Kubernetes cluster",
        description="Checks and plans a sweep, and applies a RayJob that runs it, with the sweep "
        "file as a ConfigMap. The same file again changes nothing; another one under the same "
        "name is refused. Needs the platform of k8s/README.md, and pip install "
        "'lorchestra[submit]'.",
        epilog="Example: lorchestra submit sweep.yaml --namespace lorchestra --watch. Exit "
        "codes: 0 submitted, with --watch completed; 1 the cluster refuses, or the sweep failed; "
        "2 the file or an option cannot work.",
    )
    submit.add_argument("sweep", metavar="SWEEP.yaml", type=Path)
    add_cluster_options(submit, is_required=True)
    submit.add_argument(
        "--overlay",
        default="local-cpu",
        help="local-cpu, gpu/l4 (or gpu), gpu/a100, gpu/h100, kueue, or a kustomize folder",
    )
    submit.add_argument("--image", help="of all containers (default: the overlay's)")
    submit.add_argument(
        "--sweeps",
        metavar="PLACE",
        help="bucket prefix or mounted folder that holds sweeps, such as s3://bucket/sweeps "
        "(default: the overlay's)",
    )
    submit.add_argument("--watch", action="store_true", help="until the sweep ends")
    submit.add_argument("--dry-run", action="store_true", help="print the YAML; needs no cluster")
    add_set_option(submit)
    submit.set_defaults(command=_submit)

    logs = commands.add_parser("logs", help="what the driver of a submitted sweep prints")
    logs.add_argument("name", metavar="NAME", help="the sweep's name")
    add_cluster_options(logs, is_required=True)
    logs.add_argument("--follow", action="store_true", help="until the sweep ends")
    logs.set_defaults(command=_logs)


def _submit(options: argparse.Namespace) -> int:
    from orchestrator.cluster.submitting import mlflow_lines, prepare_submission, submit

    submission = prepare_submission(
        options.sweep,
        namespace=options.namespace,
        overlay=options.overlay,
        changes=tuple(options.set),
        sweeps=options.sweeps,
        image=options.image,
    )
    if options.dry_run:
        for line in submission.lines:
            print(line, file=sys.stderr)
        print(submission.rendered.to_yaml(), end="")
        return 0
    for line in submission.lines:
        print(line)
    kube = open_cluster(options)
    assert kube is not None, "--namespace is required"
    done = submit(kube, submission)
    tell_line(f"{done.done}; storage: {submission.rendered.storage}")
    print(*mlflow_lines(kube.namespace), sep="\n")
    if options.watch:
        return _watch(kube, submission.rendered.name)
    _say_next(submission.rendered.name, kube.namespace)
    return 0


def _watch(kube: Kube, name: str) -> int:
    from orchestrator.cluster.following import follow_job

    try:
        return 0 if follow_job(kube, name, tell_line).is_completed else 1
    except KeyboardInterrupt:
        tell_line("\nno longer watched; the sweep goes on in the cluster")
        _say_next(name, kube.namespace)
        raise


def _say_next(name: str, namespace: str) -> None:
    print(f"Watch it with: lorchestra status {name} --namespace {namespace} --follow")


def _logs(options: argparse.Namespace) -> int:
    from orchestrator.cluster.looking import show_log

    kube = open_cluster(options)
    assert kube is not None, "--namespace is required"
    return show_log(kube, options.name, tell_line, is_followed=options.follow)
