"""What is read from source files and from plug-ins, without importing either; what is wrong is named and left out."""

from __future__ import annotations

import ast
import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import foveate
from foveate import registry, sources
from foveate.errors import InvalidValue
from foveate.sources import PluginWarning

PACKAGE = Path(foveate.__file__).parent
RECORD = {
    "title": "Needlework",
    "licence": "MIT",
    "family": "attention",
    "summary": "A mixer.",
    "when": "Use it.",
    "when_not": "Do not use it.",
    "cost": "Linear.",
}


def toml(**fields: object) -> str:
    """A record with other fields; None leaves one out."""
    return "".join(f"{k} = {json.dumps(v)}\n" for k, v in (RECORD | fields).items() if v is not None)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    caches = (
        sources.plugins,
        sources.all_records,
        registry._table,
        registry._sizes,
        registry._systems,
        registry._unrecorded,
    )
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def join(tmp_path, monkeypatch):
    """Install distributions by their entry points (name to module)."""

    def install(**points: str) -> Path:
        monkeypatch.syspath_prepend(tmp_path)
        made = [importlib.metadata.EntryPoint(n, m, "foveate.plugins") for n, m in points.items()]
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: made)
        return tmp_path

    return install


@pytest.fixture
def package(tmp_path) -> Path:
    """A package that cannot be imported, with one mixer and a folder of records."""
    folder = tmp_path / "others"
    (folder / "catalog").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "inner.py").write_text(
        "raise RuntimeError('imported')\n"
        "@register('mixer', 'others_own')\n"
        "class Own(Mixer):\n"
        "    '''Somebody else's mixer.'''\n"
        "    spec = MixerSpec(causal='strict', ranks=(1, 2), order=Order(flops=1.5))\n"
    )
    return folder


# Reading ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file", [f for f in sorted(PACKAGE.rglob("*.py")) if "\n@register(" in f.read_text(encoding="utf-8")], ids=str
)
def test_reading_the_heads_is_reading_the_file(file: Path, monkeypatch):
    heads = sources._heads(file.read_text(encoding="utf-8"))
    assert heads is not None
    ast.parse(heads)  # or the shortcut is none: the file is parsed twice
    found = sources.scan_file(file, "m")
    monkeypatch.setattr(sources, "_heads", lambda source: None)
    assert found == sources.scan_file(file, "m")
    assert found


@pytest.mark.parametrize(
    "source",
    [
        "@register('op', 'a')\ndef f(x):\n    return x\n@register('op', 'b')\ndef g(x):\n    pass\n",
        "@register('op', 'a')\n# why\n@other\ndef f(\n    x,\n):\n    '''Not closed at\nthe margin.'''\n",
        '@register("op", "a")\ndef f(x):\n    y = """text"""\n    return y\n',
        "@register('op', 'a')\n@register('op', 'b')\ndef f(x): pass\n",
        "@register('mixer', 'a')\nclass A(Mixer):\n    def f(self): pass\n    spec = MixerSpec(causal='strict')\n",
        "@register('mixer', 'a')\nclass A:\n    '''Shows\n\n    def f(): pass\n    '''\n    spec = MixerSpec()\n",
        "@register('mixer', 'a')\nclass A:\n    x = 1\n\n    def f(): pass\n\n    spec = MixerSpec(ranks=(2,))\n",
        "@register(\n    'mixer',\n    'a',\n    system='s',\n)\nclass A:\n    spec = MixerSpec(ranks=(1,))\n",
        "@register('model', 'a')\nclass A:\n    configurations: dict = {\n        'a_tiny': {'n': (2, 2)},\n    }\n",
        "@register('model', 'a')\nclass A:\n    def f(): pass\n\n    configurations = {'a_tiny': {}}\n",
        "@register('op', 'a')\ndef f(x): pass",
        "x = '''\n@register('op', 'never')\n'''\n@register('op', 'a')\ndef f(x): pass\n",
    ],
)
def test_whatever_the_layout(source: str, tmp_path, monkeypatch):
    file = tmp_path / "layout.py"
    file.write_text(source)
    found = sources.scan_file(file, "layout")
    assert {"a", "b"} >= {e.name for e in found} >= {"a"}
    monkeypatch.setattr(sources, "_heads", lambda source: None)
    assert found == sources.scan_file(file, "layout")


def test_the_same_name_twice_is_refused(tmp_path):
    file = tmp_path / "twice.py"
    file.write_text("@register('op', 'a')\ndef f():\n    pass\n@register('op', 'a')\ndef g():\n    pass\n")
    assert [e.attribute for e in registry.scan_file(file, "twice")] == ["f", "g"]


def test_checks_are_read_as_they_are_registered():
    from foveate.claims import claims_of

    for slug in ("mamba2", "dlinear", "beyond_llms"):
        registered = [(c.name, c.kind, c.says, c.timed) for c in claims_of(slug)]
        assert [(c.name, c.kind, c.says, c.timed) for c in foveate.get_system(slug).checks] == registered


# Published sizes ----------------------------------------------------------------------------------------------------

MODEL = """
from foveate.registry import register
from foveate.spec import ModelSpec


@register('model', 'others_net')
class Net:
    '''A network.'''
    spec = ModelSpec(reads='image', tasks=())
    configurations = {'others_tiny': {'width': 16}, 'others_large': {'width': 32, 'depth': 4}}
    published_costs = {'others_tiny': (28.3, 4.5, 224)}

    def __init__(self, width=8, depth=1):
        self.width, self.depth = width, depth
"""


@pytest.fixture
def sized(tmp_path, join, monkeypatch) -> Path:
    """A module with a model that has published sizes."""
    monkeypatch.delitem(sys.modules, "others_sized", raising=False)
    file = tmp_path / "others_sized.py"
    file.write_text(MODEL)
    join(mine="others_sized")
    return file


def test_a_published_size_is_found_and_built_by_its_name(sized):
    entry = registry.find("others_large")
    assert (entry.name, entry.configuration) == ("others_net", "others_large")
    assert entry.options == {"width": 32, "depth": 4}
    assert registry.find("others_net").options == {}
    assert registry.find("others_tiny", "model").published_costs == {"others_tiny": (28.3, 4.5, 224)}
    made = foveate.create("others_large", depth=2)
    assert (made.width, made.depth) == (32, 2)
    assert [e.configuration for e in registry.sizes() if e.file == sized] == ["others_large", "others_tiny"]
    assert "others_tiny" not in foveate.list_names()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: foveate.create("others_tiny", heads=1), "'others_tiny' has no option 'heads': its options are width"),
        (lambda: foveate.create("others_tinny"), "unknown name 'others_tinny': did you mean 'others_tiny'"),
        (lambda: foveate.create("others_tiny", kind="mixer"), "unknown mixer 'others_tiny'"),
        (lambda: foveate.get_system("others_tiny"), "it is a published size of 'others_net'"),
    ],
)
def test_what_is_wrong_with_a_size_is_named(call, message, sized):
    with pytest.raises((LookupError, TypeError), match=message):
        call()


def test_the_name_of_a_size_cannot_be_taken(sized):
    sized.write_text(sized.read_text().replace("others_tiny", "timesnet"))
    with pytest.warns(PluginWarning, match=r"the size 'timesnet' of .*others_sized.py is left out: .*timesnet.py has"):
        assert registry.sizes()
    assert registry.find("timesnet").configuration == ""
    assert registry.find("others_large").options
    assert "timesnet" not in registry.find("others_net").configurations


def test_a_size_of_ours_cannot_have_a_name_that_is_in_use(monkeypatch):
    entry = registry.find("timesnet")

    def with_sizes(*names: str) -> None:
        registry._sizes.cache_clear()
        made = dataclasses.replace(entry, configurations={name: {} for name in names})
        monkeypatch.setattr(registry, "_table", lambda: {("model", "timesnet"): made})

    with_sizes("timesnet_b", "timesnet_a")
    assert [e.configuration for e in registry.sizes()] == ["timesnet_a", "timesnet_b"]
    with_sizes("timesnet_b", "timesnet")
    with pytest.raises(InvalidValue, match=r"the name 'timesnet' is registered twice: in .*timesnet.py and in"):
        registry.sizes()


def test_a_card_shows_published_sizes(sized, capsys):
    from foveate.cli import cards

    cards.card(next(s for s, _ in registry.find_systems() if s.slug == "others_net"))
    told = " ".join(capsys.readouterr().out.split())
    assert "Published sizes others_tiny 28.3 M parameters, 4.5 G multiply-adds at 224 px others_large width=32" in told


# Plug-ins -----------------------------------------------------------------------------------------------------------


def test_a_plug_in_joins_without_being_imported(join, package):
    join(mine="others")
    entry = registry.find("others_own")
    assert entry.spec.order.flops == 1.5
    assert entry.summary == "Somebody else's mixer."
    assert entry.file == package / "inner.py"
    assert entry.module == "others.inner"


def test_a_module_inside_a_package_joins_without_importing_the_package(join, package):
    join(mine="others.inner")
    assert registry.find("others_own").file == package / "inner.py"


def test_its_records_are_in_the_catalogue(join, package):
    (package / "catalog" / "others_own.toml").write_text(toml(bibtex="@misc{x,\n}"))
    (package / "catalog" / "only_planned.toml").write_text(toml(summary="Embroidery of lace."))
    join(mine="others")
    system = foveate.get_system("others_own")
    assert (system.status, system.family, [e.name for e in system.provides]) == ("working", "attention", ["others_own"])
    assert system.files == [package / "inner.py", package / "catalog" / "others_own.toml"]
    planned = foveate.get_system("only_planned")
    assert (planned.status, planned.checks, planned.measured) == ("planned", [], ())
    assert foveate.list_systems("embroidery")[0] == "only_planned"
    assert foveate.cite("others_own") == "@misc{x,\n}"
    with pytest.raises(InvalidValue, match="only_planned has no publication to cite: it is Needlework"):
        foveate.cite("others_own", "only_planned")


def test_a_slug_of_a_plug_in_takes_no_file_of_ours(join, package):
    (package / "catalog" / "profile.toml").write_text(toml())  # foveate/analysis/profile.py is somebody else's
    join(mine="others")
    assert foveate.get_system("profile").files == [package / "catalog" / "profile.toml"]


def test_without_a_record_it_is_listed_and_no_system(join, package):
    join(mine="others")
    assert "others_own" in {s.slug for s, _ in registry.find_systems(kind="mixer")}
    assert "others_own" in {s.slug for s, _ in registry.find_systems("somebody else's mixer")}
    assert "others_own" not in foveate.list_systems()
    with pytest.raises(LookupError, match="'others_own' is registered and has no record: it needs a file catalog/othe"):
        foveate.get_system("others_own")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("title = ", "is no TOML"),
        (toml(family="atention"), "unknown family 'atention': did you mean 'attention'"),
        (toml(tasks=["forcast"]), "unknown task 'forcast': did you mean 'forecast'"),
        (toml(colour="red"), "it has no key 'colour'; its keys are title, licence"),
        (toml(when=None, cost=None), "when, cost are missing"),
        (toml(summary=""), "summary is missing"),
        (toml(year="2024"), "year='2024' is no whole number"),
        (toml(year=True), "year=True is no whole number"),
        (toml(title=3), "title=3 is no string"),
        (toml(keywords="a, b"), "keywords is no list of strings"),
        (toml(keywords=["a", 1]), "keywords is no list of strings"),
        (toml(claims="none"), "claims is no list of tables"),
        (toml() + '[[claims]]\nsays = "It is."\n', "claim 1 is no table of says and kind"),
        (toml() + '[[claims]]\nsays = "It is."\nkind = "sure"\n', "claim 1 has kind='sure'; legal are exact"),
        (toml() + '[[claims]]\nsays = 1\nkind = "exact"\n', "claim 1 says=1 is no string"),
        (toml(weights="none"), "weights is no list of tables"),
        (toml() + '[[weights]]\nname = "a"\n', "entry 1 of weights is no table of name, layout, where and licence"),
        (
            toml() + '[[weights]]\nname = "a"\nlayout = 1\nwhere = "b/c"\nlicence = "MIT"\n',
            "entry 1 of weights layout=1 is no string",
        ),
    ],
)
def test_a_malformed_record_is_named_and_skipped(text, reason, join, package):
    (package / "catalog" / "wrong.toml").write_text(text)
    (package / "catalog" / "right.toml").write_text(toml())
    join(mine="others")
    with pytest.warns(PluginWarning) as warned:
        found = foveate.list_systems()
    assert "right" in found
    assert "wrong" not in found
    (said,) = [str(w.message) for w in warned]
    assert said.startswith("the plug-in 'mine': the record ")
    assert str(package / "catalog" / "wrong.toml") in said
    assert reason in said
    assert [p.problems for p in sources.plugins()] == [[said.removeprefix("the plug-in 'mine': ")]]
    with pytest.raises(InvalidValue):
        sources.read(package / "catalog" / "wrong.toml")


@pytest.mark.parametrize("name", ["Upper", "with-dash", "1st"])
def test_a_record_has_a_legal_slug(name, join, package):
    (package / "catalog" / f"{name}.toml").write_text(toml())
    join(mine="others")
    with pytest.warns(PluginWarning, match="has no legal slug"):
        assert name not in foveate.list_systems()


def test_a_slug_of_ours_cannot_be_taken(join, package):
    (package / "catalog" / "mamba2.toml").write_text(toml())
    join(mine="others")
    with pytest.warns(PluginWarning, match="is left out: the slug 'mamba2' is in use by"):
        assert foveate.get_system("mamba2").title != "Needlework"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("@register(\ndef f(", "cannot be read, nothing of it is registered"),
        ("@register('op', name)\ndef f(): pass", "cannot be read, nothing of it is registered"),
        ("@register('op')\ndef f(): pass", "cannot be read, nothing of it is registered"),
        ("@register('mixer', 'm')\nclass M:\n    spec = MixerSpec(depth=1)\n", "cannot be read, nothing of it"),
        ("@register('thing', 'm')\nclass M: pass\n", "registers 'm' as 'thing': kinds are op, mixer"),
        ("@register('op', 'ssd')\ndef f(): pass\n", "the op 'ssd' of"),
    ],
)
def test_malformed_source_is_named_and_skipped(text, reason, join, package):
    (package / "wrong.py").write_text(text)
    join(mine="others")
    with pytest.warns(PluginWarning) as warned:
        names = foveate.list_names()
    assert "others_own" in names
    assert "m" not in names
    assert registry.find("ssd").module == "foveate.ops.ssd"
    assert [reason in str(w.message) and str(package / "wrong.py") in str(w.message) for w in warned] == [True]


@pytest.mark.parametrize("module", ["not_there", "others.not_there", "others.inner.deeper", "", "a b"])
def test_a_missing_module_is_named_and_skipped(module, join, package):
    join(gone=module, mine="others")
    with pytest.warns(PluginWarning, match=f"the plug-in 'gone': its module '{module}' is not installed: repair or"):
        assert "others_own" in foveate.list_names()


def test_two_entry_points_may_name_the_same_file(join, package, recwarn):
    join(mine="others", again="others.inner")
    assert "others_own" in foveate.list_names()
    assert not recwarn.list


def test_the_command_line_warns_in_one_sentence_and_doctor_tells(tmp_path, package):
    (package / "catalog" / "wrong.toml").write_text("title = ")
    (package / "catalog" / "right.toml").write_text(toml())
    about = tmp_path / "others-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[foveate.plugins]\nmine = others\n")
    path = os.pathsep.join([str(tmp_path), str(PACKAGE.parent)])

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "foveate", *words]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})

    listed = run("list", "--family", "attention")
    assert listed.returncode == 0
    assert " right " in listed.stdout
    (line,) = listed.stderr.strip().splitlines()
    assert line.startswith("foveate: warning: the plug-in 'mine': the record ")
    told = run("doctor", "--json")
    assert told.returncode == 0, told.stderr
    (plugin,) = json.loads(told.stdout)["plugins"]
    assert plugin["registers"] == ["mixer others_own"]
    assert plugin["records"] == ["right"]
    assert "wrong.toml is no TOML" in plugin["problems"][0]
    assert "plug-in mine (others): mixer others_own, record right" in run("doctor").stdout
