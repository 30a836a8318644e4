"""`nnunet-topomae benchmark`: plan, run, submit, watch and report a benchmark."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from nnunet_topomae.benchmark.jobs import Job, make_jobs, names
from nnunet_topomae.benchmark.spec import BenchmarkSpec, read_spec

Action = Callable[[argparse.Namespace, BenchmarkSpec, list[Job]], int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add(name: str, do: Action, help_text: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=help_text, description=help_text)
        action.set_defaults(do=do)
        action.add_argument("-b", type=Path, required=True, metavar="FILE", help="the benchmark's file")
        action.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        return action

    plan = add("plan", _plan, "list the jobs, and make plans and preprocessed data")
    plan.add_argument("--dry", action="store_true", help="only list the jobs")
    run = add("run", _run, "run the unfinished jobs on this machine")
    run.add_argument("--gpus", metavar="0,1", help="GPUs to use, one job at a time on each (default: the first one)")
    add("submit", _submit, "submit the unfinished jobs to SLURM")
    add("export", _export, "print the commands of the unfinished jobs")
    for action in (run, add("status", _status, "show the progress and the time left")):
        action.add_argument("--slots", type=int, default=1, metavar="N", help="jobs at a time (default: 1)")
    exported = add("export-scores", _export_scores, "write finished scores as small files, for another machine")
    exported.add_argument("-o", type=Path, required=True, metavar="FOLDER", help="folder to write")
    imported = add("import-scores", _import_scores, "import scores that were exported on another machine")
    imported.add_argument("-i", type=Path, required=True, metavar="FOLDER", help="folder of the exported files")
    report = add("report", _report, "write the report: tables, statistics and figures")
    report.add_argument("--partial", action="store_true", help="report even if jobs are unfinished")
    report.add_argument("--embed-images", action="store_true", help="show images of worst and median cases")
    report.add_argument(
        "--niivue",
        type=Path,
        metavar="FILE",
        help="the file niivue.umd.js, with which interactive pages are written, too",
    )
    report.add_argument(
        "-o", type=Path, metavar="FOLDER", help="default: the folder report in the benchmark's output folder"
    )
    job = add("job", _job, "run one job; `run` and `submit` start this command")
    job.add_argument("name", metavar="JOB", help="name of the job")
    job.add_argument("--fingerprint", metavar="HASH", help="run the job only if its fingerprint is still HASH")


def run(args: argparse.Namespace) -> int:
    """Do what is asked for."""
    try:
        spec = read_spec(args.b)
        jobs = make_jobs(spec)
    except (ValueError, OSError) as error:
        from nnunet_topomae.benchmark.work import CHANGED

        if getattr(args, "fingerprint", None) is None:
            raise
        # Whoever asks for a fingerprint could read the file: it is being edited, or the data are.
        print(f"error: {error}", file=sys.stderr)
        return CHANGED
    return int(args.do(args, spec, jobs))


def _job(args: argparse.Namespace, spec: BenchmarkSpec, jobs: list[Job]) -> int:
    from nnunet_topomae.benchmark.work import CHANGED, REASONS, Worker

    found = [job for job in jobs if job.name == args.name]
    if args.fingerprint and (not found or found[0].fingerprint != args.fingerprint):
        print(f"{args.name}: {REASONS[CHANGED]}", file=sys.stderr)
        return CHANGED
    if not found:
        raise ValueError(f"{args.b} has no job {args.name}; `benchmark plan --dry` lists them")
    try:
        code = Worker(found[0], spec).run()
        if code in REASONS:
            print(f"{args.name}: {REASONS[code]}", file=sys.stderr)
        return code
    except (ValueError, OSError, RuntimeError) as error:
        # Not 2, which is the shell's code for wrong arguments: schedulers tell failures apart by the code.
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(args: argparse.Namespace, spec: BenchmarkSpec, jobs: list[Job]) -> int:
    from nnunet_topomae.benchmark.gpus import choose_gpus
    from nnunet_topomae.benchmark.scheduler import LocalScheduler, exit_code
    from nnunet_topomae.benchmark.status import describe

    if args.slots < 1:
        raise ValueError(f"--slots {args.slots} must be at least 1")
    slots = choose_gpus(args.gpus, args.slots, spec.device, os.environ)
    try:
        outcome = LocalScheduler(spec, args.b, slots).run(jobs)
        while not (outcome.failed or outcome.interrupted) and (edited := _with_added(args.b, jobs)):
            spec, jobs = edited
            outcome = LocalScheduler(spec, args.b, slots).run(jobs)
    except KeyboardInterrupt as stop:
        print("Stopped. What is done stays done, and trainings keep their last checkpoint: run again to continue.")
        return exit_code(stop)
    print(describe(jobs, spec, len(slots)))
    if outcome.failed:
        skipped = f"; {len(outcome.skipped)} that need them were left out" if outcome.skipped else ""
        print(f"{len(outcome.failed)} jobs failed{skipped}. Remove the cause and run again: what is done stays done.")
        return 1
    if outcome.interrupted:
        print(f"{len(outcome.interrupted)} jobs were interrupted. Run again: they continue.")
        return 1
    return 0


def _with_added(file: Path, jobs: list[Job]) -> tuple[BenchmarkSpec, list[Job]] | None:
    """What the benchmark's file asks for now, if jobs were added to it.

    Raises:
        RuntimeError: jobs of before are others now.
    """
    spec = read_spec(file)
    now = make_jobs(spec)
    before = {job.name: job.fingerprint for job in jobs}
    changed = [job for job in now if before.get(job.name, job.fingerprint) != job.fingerprint]
    if changed:
        raise RuntimeError(
            f"{file}, the data or the code were changed during the run: these are other jobs now: {names(changed)}. "
            "What was done is kept. Run again to do them as they are now."
        )
    added = sum(job.name not in before for job in now)
    if not added:
        return None
    print(f"{file} was edited during the run: {added} jobs are new. Going on with them.")
    return spec, now


def _plan(args: argparse.Namespace, spec: BenchmarkSpec, jobs: list[Job]) -> int:
    from nnunet_topomae.benchmark.scheduler import LocalScheduler
    from nnunet_topomae.benchmark.store import JobFolder

    for job in jobs:
        print(f"{JobFolder.of(job, spec).state():<8} {job.fingerprint}  {job.name}")
    if args.dry:
        return 0
    outcome = LocalScheduler(spec, args.b, [None]).run([job for job in jobs if job.kind == "plan"])
    return 1 if outcome.failed else 0


def _submit(args: argparse.Namespace, spec: BenchmarkSpec, jobs: list[Job]) -> int:
    from nnunet_topomae.benchmark.slurm import submit

    found = submit(spec, args.b, jobs, os.environ)
    if found.queued:
        print(f"{len(found.queued)} jobs are in SLURM's queue from an earlier submission and stay there.")
    if found.blocked:
        print(
            f"{len(found.blocked)} jobs run outside of SLURM or need one that does: {', '.join(found.blocked[:5])}"
            f"{', ...' if len(found.blocked) > 5 else ''}. Submit again when those have ended."
        )
    print(f"{len(found.submitted)} jobs submitted. `nnunet-topomae benchmark status -b {args.b}` or squeue show them.")
    return 0


def _export(args: argparse.Namespace, spec: BenchmarkSpec, jobs: list[Job]) -> int:
    from nnunet_topomae.benchmark.slurm import command_list

    print(command_list(spec, args.b, jobs), end="")
    return 0


def _export_scores(args: argparse.Namespace, spec: BenchmarkSpec, jobs: list[Job]) -> int:
    from nnunet_topomae.benchmark.exchange import export_scores

    print(f"{len(export_scores(spec, jobs, args.o))} scores written to {args.o}")
    return 0


def _import_scores(args: argparse.Namespace, spec: BenchmarkSpec, jobs: list[Job]) -> int:
    from nnunet_topomae.benchmark.exchange import import_scores

    found = import_scores(spec, jobs, args.i)
    print(f"{len(found.taken)} scores taken, {len(found.known)} were here already")
    if found.differing:
        print(
            f"{len(found.differing)} of those have other values in {args.i}: {names(found.differing)}. "
            "Those that were here first are kept. On a GPU, repeated trainings differ: import from one machine only "
            "what no other has done."
        )
    return 0


def _report(args: argparse.Namespace, spec: BenchmarkSpec, jobs: list[Job]) -> int:
    from nnunet_topomae.reports.benchmark import write_benchmark_report

    images = args.embed_images or spec.embed_images
    if args.niivue and not images:
        raise ValueError("--niivue puts images of patients into its pages: say so with --embed-images")
    _, written = write_benchmark_report(spec, jobs, args.o or spec.out / "report", args.partial, images, args.niivue)
    for path in written:
        print(path)
    return 0


def _status(args: argparse.Namespace, spec: BenchmarkSpec, jobs: list[Job]) -> int:
    from nnunet_topomae.benchmark.status import describe

    print(describe(jobs, spec, args.slots))
    return 0
