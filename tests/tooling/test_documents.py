"""The documents that describe the repository agree with it, and lead nowhere else."""

from __future__ import annotations

import ast
import re
from pathlib import Path, PurePosixPath

import pytest

from app.archive.tables import metadata
from app.domain import records
from app.failpoints import NAMES
from tests.tooling.tree import APP, DOCS, ROOT, documents, packages, relative, texts

ARCHITECTURE = (DOCS / "architecture.md").read_text()
GLOSSARY = (DOCS / "glossary.md").read_text()
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)

# Registries of packages, in two parts each, since this file is searched as well.
REGISTRIES = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("yarnpkg", "com"),
        ("proxy.golang", "org"),
        ("crates", "io"),
        ("hub.docker", "com"),
    )
)
WRITTEN_BY_TESTS = {"faults.md"}
# Folders of one machine, and the folder beside the repository.
OUTSIDE = re.compile(r"(?<![\w.-])/(?:work|home)/|\.\./shared|~/")


def rows(text: str, heading: str) -> list[str]:
    """The first cells of the tables below a heading, without their backticks."""
    section = text.partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)


def named(cells: list[str]) -> set[str]:
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_folder_map_is_the_tree() -> None:
    """docs/architecture.md, "Folders": every package of app, and no folder that is not there."""
    mapped = named(rows(ARCHITECTURE, "## Folders"))

    assert packages() - mapped == set(), "add a line to docs/architecture.md, Folders"
    assert {folder for folder in mapped if not (ROOT / folder).is_dir()} == set(), (
        "remove the line from docs/architecture.md, Folders"
    )


def test_the_task_table_has_every_job_of_the_worker() -> None:
    """docs/architecture.md says of each job what it reads and writes, and when it runs."""
    (jobs,) = (node for node in ast.walk(ast.parse((APP / "worker.py").read_text())) if getattr(node, "name", "") == "jobs")
    (table,) = (node for node in ast.walk(jobs) if isinstance(node, ast.Dict))
    names = {ast.literal_eval(key) for key in table.keys if key is not None}

    assert named(rows(ARCHITECTURE, "## Processes, tasks and queues")) == names


def test_every_failpoint_says_what_a_crash_there_does() -> None:
    """docs/architecture.md has a row for each, in the order of a message's life."""
    assert [cell.strip("`") for cell in rows(ARCHITECTURE, "## A crash between any two steps")] == list(NAMES)


def test_every_redis_key_has_an_owner() -> None:
    """docs/architecture.md names each key that `app.live.keys` makes, up to its first variable part."""
    made = re.findall(r'"(adj:[^"]*)"', (APP / "live" / "keys.py").read_text())
    known = {re.sub(r"<\w+>.*", "", name) for name in named(rows(ARCHITECTURE, "## Data and its owners"))}
    missing = {
        key
        for key in (re.sub(r"\{(?!n\}|config\}).*", "", key.replace("{{{shard}}}", "{n}")) for key in made)
        if key not in known
    }

    assert missing == set(), "say in docs/architecture.md, Data and its owners, who writes and reads it"


def test_every_table_has_an_owner() -> None:
    """docs/architecture.md names each table of Postgres."""
    assert set(metadata.tables) - named(rows(ARCHITECTURE, "## Data and its owners")) == set()


def test_every_metric_says_why_to_watch_it() -> None:
    """docs/operations.md names each metric of `app.metrics`."""
    made = re.findall(r'"(adjourn_\w+)"', (APP / "metrics.py").read_text())
    watched = (DOCS / "operations.md").read_text()

    assert made
    assert [name for name in made if f"`{name}" not in watched] == [], "add a row to docs/operations.md"


def test_the_glossary_has_every_record_and_every_package() -> None:
    """A type that travels between the stages, and a package, have a word with one meaning."""
    types = {
        name
        for name, value in vars(records).items()
        if name[0].isupper() and not name.isupper() and getattr(value, "__module__", records.__name__) == records.__name__
    }
    types |= set(re.findall(r"^([A-Z]\w*[a-z]\w*) = ", (APP / "domain" / "records.py").read_text(), re.MULTILINE))
    words = named(re.findall(r"^\|(.*)\|$", GLOSSARY, re.MULTILINE))
    folders = {package.rpartition("/")[2] for package in packages()} - {"app"}

    assert (types & {*vars(records)}) - words == set(), "add the type to docs/glossary.md"
    assert folders - words == set(), "add the package to docs/glossary.md, Packages"


@pytest.mark.parametrize("path", sorted(documents()))
def test_links_resolve(path: str) -> None:
    """A link within the repository names a file that is there, and a heading that is in it."""
    text = documents()[path]
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        linked = (ROOT / path).parent / name if name else ROOT / path
        assert linked.resolve().is_relative_to(ROOT), target
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked.read_text()), target


@pytest.mark.parametrize("path", sorted(path for path in documents() if path.startswith("docs/decisions/")))
def test_a_decision_record_has_its_parts(path: str) -> None:
    """The number of the file, then context, decision, consequences and alternatives (CONTRIBUTING.md)."""
    text = documents()[path]

    assert text.startswith(f"# {int(path.rpartition('/')[2][:4])}. ")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences", "Alternatives"]


def test_no_file_names_one_outside_the_repository() -> None:
    """A clone is complete: a document that is named is in it, and no path leads to one person's machine."""
    known = {PurePosixPath(path).name for path in documents()}
    searched = {path: text for path, text in texts().items() if path != relative(Path(__file__))}
    unknown = [
        f"{path}: {name}"
        for path, text in searched.items()
        for name in re.findall(r"(?<![\w./*-])[\w./-]+\.md\b", text)
        if PurePosixPath(name).name not in known | WRITTEN_BY_TESTS
    ]

    assert unknown == []
    assert [f"{path}: {found}" for path, text in searched.items() for found in OUTSIDE.findall(text)] == []


def test_no_file_names_a_registry() -> None:
    """Where packages come from is set on the machine that installs them."""
    assert [(path, host) for path, text in texts().items() for host in REGISTRIES if host in text] == []


def test_each_threat_names_a_test() -> None:
    """docs/security.md, "Threats": the last cell of each row is a test that there is."""
    threats = re.findall(r"^\| (?!who|---).*\| ([^|]+) \|$", (ROOT / "docs" / "security.md").read_text(), re.MULTILINE)
    absent = [cell for cell in threats if not _is_test(cell.strip("`"))]

    assert len(threats) > 20
    assert absent == []


def _is_test(name: str) -> bool:
    path, _, function = name.partition("::")
    return (ROOT / path).is_file() and re.search(
        rf"^(async )?def {function}\(", (ROOT / path).read_text(), re.MULTILINE
    ) is not None
