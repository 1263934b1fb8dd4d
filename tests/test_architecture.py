"""The house's rules, read from the syntax trees: who imports whom, how big things are, what they are called."""

from __future__ import annotations

import ast
import fnmatch
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from florilegium.catalogue import CATALOGUE

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {
    "florilegium": {"florilegium"},
    "strategies": {"strategies", "florilegium"},
    "client_app": {"client_app", "florilegium"},
    "server_app": {"server_app", "strategies", "florilegium"},
}
ONLY_IN = {
    "flwr": {
        "florilegium/protocol/codec.py",
        "florilegium/federation/federation.py",
        "florilegium/runtime/inprocess.py",
        "florilegium/runtime/launch.py",
        "florilegium/runtime/superlink.py",
        "strategies/blocks/rounds.py",
        "strategies/flower.py",
        "server_app/app.py",
        "florilegium/contract/checks.py",
        "client_app/app.py",
    },
    "hydra": {
        "florilegium/config/composition.py",
        "florilegium/config/overrides.py",
        "florilegium/config/method_schemas.py",
        "florilegium/config/schemas.py",
        "florilegium/config/search_path.py",
        "florilegium/runtime/launch.py",
    },
    "diffusers": {
        "florilegium/contract/tiny_models.py",
        "florilegium/diffusion/stable.py",
        "florilegium/diffusion/stable_xl.py",
        "florilegium/diffusion/stable_flow.py",
        "florilegium/diffusion/noising.py",
        "florilegium/diffusion/sizes.py",
        "florilegium/diffusion/glide/text_encoder.py",
        "florilegium/diffusion/glide/pipeline.py",
        "florilegium/diffusion/glide/conversion.py",
    },
    "pickle": set(),
}
# inside florilegium: a package imports those of lines above its own alone, so no two packages need each other
LAYERS = (
    {"seeds", "assets", "catalogue"},
    {"config"},
    {"protocol", "runs", "hub"},
    {"data", "learning"},
    {"models", "diffusion"},
    {"resources", "privacy"},
    {"federation", "methods"},
    {"preflight", "report"},
    {"runtime"},
    {"cli", "contract"},
)
# how a run is started and how its pages are made: no business of a method
NOT_FOR = {
    "strategies": {"cli", "contract", "runtime", "preflight", "report", "assets"},
    "client_app": {"cli", "contract", "runtime", "preflight", "report", "resources", "federation", "assets"},
    "server_app": {"cli", "contract", "runtime", "preflight"},
}
DOORS = {"server_app.app": {"preflight"}}  # a bare `flwr run` starts a run too, and checks it first
# our own modules are loaded by name here and nowhere else
BY_NAME = {
    "florilegium/catalogue.py",  # the two sides of a method
    "florilegium/diffusion/load.py",  # the backend of a text-to-image model: each needs libraries of its own
    "florilegium/cli/main.py",  # the sub-command that is called
    "florilegium/__init__.py",  # run, load and compare: importing florilegium stays light
    "florilegium/runtime/inprocess.py",  # the two apps that pyproject.toml names
    "florilegium/runs/sinks/opening.py",  # the sinks that are on: each needs a library of an optional extra
}
MOST_NAMES = 20  # at one level of a package
MOST_LINES = 500  # of a file
# these read a site's own data
OWN = {
    "florilegium/data/private.py",
    "florilegium/data/own/sources.py",
    "florilegium/data/own/examination.py",
    "florilegium/data/own/preparation.py",
    "florilegium/cli/data_check.py",
}
SAY_NOTHING = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "handler", "base", "core"}
DROPPED_BY_FLOWER = {"lib", "build", "parts", "env"}
FILES = sorted(path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py"))


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(), file)


def imports(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Dotted names; `from a import b` gives both a and a.b, as b may be a module."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import(file: str) -> set[str]:
    """What a module imports when it is imported, not what its functions import later."""

    def outside_functions(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) or _type_checking(child):
                continue
            yield child
            yield from outside_functions(child)

    return set(imports(outside_functions(tree(file))))


def _type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def file_of(module: str) -> str | None:
    path = module.replace(".", "/")
    return next((name for name in (f"{path}.py", f"{path}/__init__.py") if name in FILES), None)


def loaded_with(start: str) -> set[str]:
    """All top-level packages that importing `start` (a file) loads, through our own modules."""
    seen, todo, outside = set(), [start], set()
    while todo:
        file = todo.pop()
        if file in seen:
            continue
        seen.add(file)
        for module in at_import(file):
            inner = [name for name in (file_of(module), file_of(module.split(".")[0])) if name]
            todo += inner
            if module.split(".")[0] not in ROOMS:
                outside.add(module.split(".")[0])
    return outside


@pytest.mark.parametrize("file", FILES)
def test_rooms_import_only_what_they_may(file: str) -> None:
    room = file.split("/")[0]
    for module in set(imports(ast.walk(tree(file)))):
        top = module.split(".")[0]
        assert top not in ROOMS or top in ROOMS[room], f"{file} imports {module}"
        assert top not in ONLY_IN or file in ONLY_IN[top], f"{file} imports {module}"
        assert (
            not module.startswith("florilegium.data.private")
            or room == "client_app"
            or file == "florilegium/data/private.py"
        ), f"{file} imports {module}: private data has one door"
        own = ("florilegium.data.own.sources", "florilegium.data.own.examination")
        assert not module.startswith(own) or file in OWN, (
            f"{file} imports {module}: private data has one door, and the site's own check"
        )


# -- imports -----------------------------------------------------------------------------------------------------------


def module_of(file: str) -> str:
    """The dotted name of a file; of a package's __init__ the package's."""
    return ".".join(Path(file).with_suffix("").parts).removesuffix(".__init__")


@cache
def graph() -> dict[str, set[str]]:
    """Module -> our modules that it imports anywhere: at its top, in its functions, under TYPE_CHECKING."""
    modules = {module_of(file): file for file in FILES}
    return {
        module: {name for name in imports(ast.walk(tree(file))) if name in modules and name != module}
        - {name for name in modules if modules[name].endswith("__init__.py")}
        for module, file in modules.items()
    }


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module, each sorted (Tarjan 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        path.append(module)
        for other in edges.get(module, ()):
            if other not in order:
                visit(other)
            if other in path:
                lowest[module] = min(lowest[module], lowest[other])
        if lowest[module] == order[module]:
            start = path.index(module)
            if len(circle := sorted(path[start:])) > 1:
                found.append(circle)
            del path[start:]

    for module in edges:
        if module not in order:
            visit(module)
    return found


def test_circles_are_found() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert sorted(circles(edges)) == [["a", "b", "c"], ["d", "e"]] and circles({"a": {"b"}, "b": set()}) == []


def test_no_import_circle_and_no_two_files_that_import_each_other() -> None:
    edges = graph()
    assert "florilegium.seeds" in edges["client_app.client"] and len(edges) > 150
    assert not [(a, b) for a in edges for b in edges[a] if a < b and a in edges[b]]
    assert not circles(edges)


@pytest.mark.parametrize("file", FILES)
def test_our_own_modules_are_imported_at_the_top_of_a_file(file: str) -> None:
    top = {id(node) for node in tree(file).body}
    for node in ast.walk(tree(file)):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in top:
            names = set(imports(iter([node])))
            assert not {name.split(".")[0] for name in names} & set(ROOMS), f"{file}:{node.lineno} imports {names}"
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "import_module":
            ours = file in BY_NAME or file == "florilegium/runtime/warm.py"  # there: libraries
            assert ours, f"{file}:{node.lineno} loads a module by name"


def package_of(module: str) -> str:
    """The package or module of florilegium's first level."""
    return module.split(".")[1]


def test_the_packages_of_florilegium_import_downwards() -> None:
    height = {name: level for level, names in enumerate(LAYERS) for name in names}
    there = {
        package_of(module_of(file))
        for file in FILES
        if file.count("/") and "." in module_of(file) and file.startswith("florilegium/")
    }
    assert there == set(height), there ^ set(height)
    for module, others in graph().items():
        for other in others:
            if not other.startswith("florilegium."):
                continue
            below = package_of(other)
            if not module.startswith("florilegium."):
                refused = NOT_FOR.get(module.split(".")[0], set()) - DOORS.get(module, set())
                assert below not in refused, f"{module} imports {other}"
            elif package_of(module) != below:
                assert height[below] < height[package_of(module)], f"{module} imports {other}"


# -- sizes and names ---------------------------------------------------------------------------------------------------


def test_a_level_of_a_package_has_few_names() -> None:
    folders = {Path(file).parent for file in FILES}
    for folder in folders:
        names = {path.name for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"}
        names |= {path.name for path in (ROOT / folder).iterdir() if (path / "__init__.py").exists()}
        assert len(names) <= MOST_NAMES, f"{folder} has {len(names)} names"


@pytest.mark.parametrize("file", [file for file in FILES if file.endswith("__init__.py")])
def test_a_package_says_what_lives_there_and_nothing_else(file: str) -> None:
    said = ast.get_docstring(tree(file))
    assert said and 2 <= len(said.splitlines()) <= 5, f"{file}: what lives here, and who may import it"
    assert len(tree(file).body) == 1 or file == "florilegium/__init__.py", f"{file} holds code"


@pytest.mark.parametrize("file", FILES)
def test_sizes(file: str) -> None:
    lines = len((ROOT / file).read_text().splitlines())
    half = re.match(r"(strategies|client_app/methods)/", file)
    assert lines <= MOST_LINES, f"{file} has {lines} lines"
    for node in ast.walk(tree(file)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length, most = node.end_lineno - node.lineno + 1, 40 if half and node.name == "round" else 60
            assert length <= most, f"{file}: {node.name} has {length} lines"


# a method's own files; everything else is shared, and asks the catalogue's facts
OF_A_METHOD = re.compile(
    r"strategies/(?!blocks/).+\.py|strategies/blocks/guidance\.py|client_app/(methods|guidance)/.+|florilegium/methods/.+"
    r"|florilegium/catalogue\.py"
)
FRAMEWORK = {"flower"}  # the method of this name runs the strategies of Flower, which all code may name


@pytest.mark.parametrize("file", [file for file in FILES if not OF_A_METHOD.fullmatch(file)])
def test_shared_code_knows_no_method_by_name(file: str) -> None:
    """In code and in comments: a source is cited by its arXiv number."""
    names = {name for name in CATALOGUE if name not in FRAMEWORK} | {"fed-et"}
    for number, line in enumerate((ROOT / file).read_text().splitlines(), 1):
        found = [name for name in sorted(names) if name in line.lower()]
        assert not found, f"{file}:{number} names {found[0]}"


@pytest.mark.parametrize("file", FILES)
def test_names_say_something(file: str) -> None:
    names = list(Path(file).with_suffix("").parts)
    names += [n.name for n in ast.walk(tree(file)) if isinstance(n, (ast.ClassDef, ast.FunctionDef))]
    for name in names:
        words = set(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_"))
        assert not words & SAY_NOTHING, f"{file}: {name}"
    assert not set(Path(file).parts[:-1]) & DROPPED_BY_FLOWER, f"{file}: Flower's bundle would drop it"


def test_no_class_inherits_twice_within_the_house() -> None:
    bases = {
        node.name: [getattr(b, "id", getattr(b, "attr", "")) for b in node.bases]
        for file in FILES
        for node in ast.walk(tree(file))
        if isinstance(node, ast.ClassDef)
    }
    deep = [
        f"{name} -> {above} -> {top}"
        for name, direct in bases.items()
        for above in direct
        for top in bases.get(above, [])
        if top in bases
    ]
    assert not deep


def test_a_report_reads_without_torch_and_a_client_runs_without_diffusers() -> None:
    if "florilegium/report/page.py" in FILES:
        assert "torch" not in loaded_with("florilegium/report/page.py")
    for file in FILES:
        if file.startswith("client_app/"):
            assert "diffusers" not in loaded_with(file), file
    for start in ("server_app/app.py", "client_app/app.py", "florilegium/runtime/launch.py"):
        # seconds of a core in each process of a run, and many runs need none of them
        assert not loaded_with(start) & {"torchmetrics", "transformers", "diffusers", "matplotlib", "scipy"}, start


def test_every_module_and_setting_is_in_the_bundle() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["fab-include"]
    needed = FILES + [path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")]
    flat = [pattern.replace("**/", "*") for pattern in patterns]
    for file in needed:
        assert any(fnmatch.fnmatch(file, pattern) for pattern in flat), f"{file} would be missing from Flower's bundle"
        assert not Path(file).name.startswith("test_"), f"{file}: Flower's bundle drops test files"


def test_tracked_files_name_no_machine_and_no_registry() -> None:
    machine = re.compile(r"(^|[\s\"'=(:])/(work|home|root|opt|farm)/\w", re.MULTILINE)
    hosts = re.compile(
        "|".join(
            re.escape(part + end)
            for part, end in (
                ("pypi", ".org"),
                ("python", "hosted.org"),
                ("registry.", "npmjs"),
                ("deb.", "debian.org"),
            )
        )
    )
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    for name in listed:
        path = ROOT / name
        if path.suffix in (".py", ".toml", ".yaml", ".txt", ".md", ".sh", "") and path.is_file():
            text = path.read_text(errors="ignore")
            assert not machine.search(text), f"{name} names a path of one machine: {machine.search(text)[0]!r}"
            assert not hosts.search(text), f"{name} names a registry host"


def test_only_the_settings_know_omegaconf() -> None:
    """Everybody else gets typed objects. The warm process of a site imports it by its name, so that forks have it."""
    written = {file for file in FILES if re.search("omegaconf|DictConfig", (ROOT / file).read_text(), re.IGNORECASE)}
    outside = {file for file in written if not file.startswith("florilegium/config/")}
    assert len(written) > 3 and outside <= {"florilegium/runtime/warm.py"}
    assert "omegaconf" not in {name.split(".")[0] for name in imports(ast.walk(tree("florilegium/runtime/warm.py")))}
