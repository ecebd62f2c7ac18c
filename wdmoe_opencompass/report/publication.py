"""Make a run's folder ready to publish: versions, citations, the commands to reproduce it, and checksums."""

import ast
import hashlib
import json
import os
import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import distributions, version
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from .._util.atomic_write import write_whole
from .._util.file_names import PARTIAL_PREFIX, file_name, files_below, sibling
from .._util.safe_yaml import yaml_text
from ..channel.profile import list_profiles, load_profile
from ..errors import WdmoeError
from ..trace.format import EVENTS_SUFFIX, SEALED_SUFFIX
from ..trace.speed import SPEED_SUFFIX
from .runs import ModelRun
from .summary_files import MANIFEST_FILE, WRITE_AGAIN

PUBLISHED = ("configs", "predictions", "results", "summary")  # folders of a run that the manifest lists
REQUIREMENTS_HEAD = "# as the traces recorded; packages they do not name: as installed where this summary was written\n"
CITATION = r"""@misc{{wdmoe,
  title         = {{WDMoE: Wireless Distributed Mixture of Experts for Large Language Models}},
  eprint        = {{2411.06681}},
  archivePrefix = {{arXiv}},
  year          = {{2024}}
}}

@software{{wdmoe_opencompass,
  title   = {{wdmoe\_opencompass: an OpenCompass plugin for wirelessly distributed mixture-of-experts models}},
  version = {{{wdmoe_opencompass}}}
}}

@misc{{opencompass,
  title        = {{OpenCompass: A Universal Evaluation Platform for Foundation Models}},
  author       = {{{{OpenCompass Contributors}}}},
  howpublished = {{\url{{https://github.com/open-compass/opencompass}}}},
  year         = {{2023}},
  note         = {{version {opencompass}}}
}}

@inproceedings{{transformers,
  title     = {{Transformers: State-of-the-Art Natural Language Processing}},
  author    = {{Wolf, Thomas and others}},
  booktitle = {{Proceedings of EMNLP 2020: System Demonstrations}},
  year      = {{2020}},
  note      = {{version {transformers}}}
}}
"""


def write_publication(run_folder: Path, runs: Sequence[ModelRun]) -> None:
    """Write versions.json, requirements.txt, CITATION.bib, reproduce.md and manifest.json into the run's `summary/`.

    Versions are those that the traces recorded, and this environment's where they recorded none. A channel profile that
    is not a shipped one is written to profiles/, as the traces carry it.

    The manifest holds the SHA-256 of every file of configs/, predictions/, results/ and summary/, by relative path.
    """
    summary = run_folder / "summary"
    summary.mkdir(parents=True, exist_ok=True)
    names = ("wdmoe_opencompass", "opencompass", "torch", "transformers", "accelerate", "numpy", "scipy")
    recorded = _recorded_versions(runs)
    versions = {name: recorded.get(name) or version(name) for name in names}
    machine = dict(python=platform.python_version(), platform=platform.platform(), packages=versions)
    write_whole(summary / "versions.json", json.dumps(machine, indent=1) + "\n")
    write_whole(summary / "requirements.txt", _requirements(recorded))
    write_whole(summary / "CITATION.bib", CITATION.format(**versions))
    write_whole(summary / "reproduce.md", _commands(run_folder, _published_profiles(summary, runs)))
    write_whole(summary / MANIFEST_FILE, json.dumps(manifest(run_folder), indent=1) + "\n")


def manifest(run_folder: Path) -> dict[str, str]:
    """-> relative path -> SHA-256 of every published file but the manifest itself."""
    files = sorted(path for folder in PUBLISHED for path in (run_folder / folder).rglob("*") if path.is_file())
    return {
        path.relative_to(run_folder).as_posix(): _digest(path)
        for path in files
        if path.name != MANIFEST_FILE and not _is_partial(path, run_folder)
    }


def _is_partial(path: Path, run_folder: Path) -> bool:
    """Whether OpenCompass collects the answers of an unfinished dataset in this file.

    A dataset may be called `tmp_...` itself: then its predictions have a trace next to them, or results.
    """
    folder, *names = path.relative_to(run_folder).parts
    if folder != "predictions" or not path.name.startswith(PARTIAL_PREFIX):
        return False
    if path.name.endswith(".jsonl"):
        return not path.name.endswith((SPEED_SUFFIX, EVENTS_SUFFIX))
    is_of_dataset = sibling(path, SEALED_SUFFIX).exists() or run_folder.joinpath("results", *names).exists()
    return path.name.endswith(".json") and not is_of_dataset


def _digest(path: Path) -> str:
    with path.open("rb") as file:  # a recording may be larger than memory
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_in_manifest(run_folder: Path, paths: Sequence[Path]) -> None:
    """Put files that were written later into the run's manifest, where it has one; WdmoeError where that is none."""
    file = run_folder / "summary" / MANIFEST_FILE
    if file.is_file():
        try:
            listed = TypeAdapter(dict[str, str]).validate_json(file.read_bytes())
        except ValidationError:
            raise WdmoeError(f"{file}: must be a JSON object of file names and SHA-256; {WRITE_AGAIN}") from None
        for path in paths:
            listed[path.relative_to(run_folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
        write_whole(file, json.dumps(dict(sorted(listed.items())), indent=1) + "\n")


def _recorded_versions(runs: Sequence[ModelRun]) -> dict[str, str]:
    recorded: dict[str, str] = {}
    for run in runs:
        for trace in run.all_traces:
            recorded |= trace.metadata.versions
    return recorded


def _published_profiles(summary: Path, runs: Sequence[ModelRun]) -> list[str]:
    """What `--profile` takes for each profile of the runs: a shipped one's name, or a file written into profiles/."""
    profiles = {trace.metadata.profile_hash: trace.metadata.profile for run in runs for trace in run.all_traces}
    published = []
    for profile_hash, profile in profiles.items():
        if profile.name in list_profiles() and load_profile(profile.name).content_hash == profile_hash:
            published.append(profile.name)
            continue
        path = summary / "profiles" / file_name(profile.name, f"_{profile_hash[:12]}.yaml")
        path.parent.mkdir(exist_ok=True)
        content = profile.model_dump(mode="json", exclude={"name"}, exclude_none=True)
        write_whole(path, yaml_text(content))
        published.append(path.relative_to(summary.parent).as_posix())
    return published


def relative_paths(config: Path) -> list[str]:
    """-> the files and folders that a run's config reads, relative to the current folder, where the run was started.

    `work_dir` is what the run wrote. OpenCompass looks for data below COMPASS_DATA_CACHE too: what is there is found
    from everywhere.
    """
    try:
        tree = ast.parse(config.read_bytes())
    except (OSError, ValueError, SyntaxError):
        return []
    read = [line for line in tree.body if not (isinstance(line, ast.Assign) and _assigns_work_dir(line))]
    nodes = [node for line in read for node in ast.walk(line) if isinstance(node, ast.Constant)]
    return sorted({node.value for node in nodes if isinstance(node.value, str) and _is_relative_path(node.value)})


def _assigns_work_dir(line: ast.Assign) -> bool:
    return any(isinstance(target, ast.Name) and target.id == "work_dir" for target in line.targets)


def _is_relative_path(text: str) -> bool:
    if not ("/" in text or "." in text) or os.path.isabs(text) or not text.strip("./"):
        return False
    try:
        return os.path.exists(text)
    except ValueError:  # a zero byte
        return False


def _requirements(recorded: dict[str, str]) -> str:
    """Every installed package, pinned, in the version that the traces recorded; a local part (+cpu) is left out."""
    installed = {package.metadata["Name"]: package.version for package in distributions()}
    pins = {f"{name}=={number.partition('+')[0]}" for name, number in (installed | recorded).items()}
    return REQUIREMENTS_HEAD + "\n".join(sorted(pins, key=str.lower)) + "\n"


def _commands(run_folder: Path, profiles: Sequence[str]) -> str:
    configs = sorted((run_folder / "configs").glob("*.py"))
    config = f"configs/{configs[-1].name}" if configs else "CONFIG"
    needed = relative_paths(configs[-1]) if configs else []
    run_again, verify = f"opencompass {config} -w NEW_RUN", "wdmoe verify ."
    lines = [
        "# How to reproduce this run",
        "",
        "All commands run in this folder, the time-stamped folder of the run or a copy of it, in a shell.",
        "",
    ]
    if needed:  # these paths hold only where the run was started
        data = f"$(printenv DATA || printf %s {shlex.quote(os.getcwd())})"
        run_again = f'(cd "{data}" && opencompass "$OLDPWD/{config}" -w "$OLDPWD/NEW_RUN")'
        verify = f'(cd "{data}" && wdmoe verify "$OLDPWD")'
        lines += [
            "The config reads models and data by paths relative to the folder where the run was started. On another "
            "machine, or in another clone, say first where they are: export DATA=FOLDER. The folder must hold:",
            "",
            *(f"- `{path}`" for path in needed),
            "",
        ]
    lines += [
        "    pip install -r summary/requirements.txt   # wdmoe_opencompass from its repository where it is on no index",
        f"    {run_again}   # the whole evaluation again",
        "    wdmoe compare . NEW_RUN/*                  # differences between that run and this one",
        f"    {verify}   # are results and tables what predictions and traces give",
        "    wdmoe report .                             # the tables",
        "    wdmoe figures .                            # the figures, from the traces alone",
    ]
    traces = files_below(run_folder / "predictions", SEALED_SUFFIX)
    in_folders = any(len(path.relative_to(run_folder).parts) != 3 for path in traces)  # a name with a slash
    found = f"find predictions -name '*{SEALED_SUFFIX}' -print0 | sort -z | xargs -0 wdmoe replay"
    command = found if in_folders else f"wdmoe replay predictions/*/*{SEALED_SUFFIX}"
    for name in sorted(profiles):
        options = [f"--profile {shlex.quote(name)} --allocation {way} --scope layer" for way in ("uniform", "optimal")]
        lines += [f"    {command} {chosen}" for chosen in options]
    return "\n".join(lines) + "\n"
