"""No file that is read can run code: what would let it is not in the source at all, read off its syntax trees."""

from __future__ import annotations

import ast

import pytest
from support.scripts import ROOT

FILES = sorted(file for folder in ("blink_exp", "bench", "hydra_plugins") for file in (ROOT / folder).rglob("*.py"))
FILES += [ROOT / name for name in ("evaluate.py", "sweep.py", "train.py")]
NEVER = {  # calls of these names, whatever their arguments
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "pty.spawn", "pickle.load", "pickle.loads", "pickle.Unpickler"),
    *("cloudpickle.load", "cloudpickle.loads", "dill.load", "dill.loads", "joblib.load", "marshal.load", "marshal.loads", "shelve.open"),
    *("pd.read_pickle", "pandas.read_pickle", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "runpy.run_path", "jsonpickle.decode"),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "torch.hub.load", "torch.package.PackageImporter"),
}
MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "jsonpickle"}  # never imported
NEEDED = {  # calls that need an argument with this value
    "torch.load": ("weights_only", True),
    "yaml.load": ("Loader", "yaml.SafeLoader"),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
HUB = ("AutoConfig", "AutoModel", "AutoProcessor", "AutoTokenizer", "AutoImageProcessor")  # classes whose repository may bring code


def forbidden(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, what is wrong with it) of every call and import that could run code of a file."""
    out = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            out += [(node.lineno, f"import {name}") for name in names if name.partition(".")[0] in MODULES]
            if isinstance(node, ast.ImportFrom) and node.module in {name.rpartition(".")[0] for name in (*NEVER, *NEEDED)}:
                taken = {f"{node.module}.{a.name}" for a in node.names}
                out += [(node.lineno, f"from {name}") for name in sorted(taken & {*NEVER, *NEEDED})]
        if isinstance(node, ast.Call):
            out += [(node.lineno, wrong) for wrong in wrongs(node)]
    return out


def wrongs(call: ast.Call) -> list[str]:
    name = ast.unparse(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    out = [name] if name in NEVER else []
    if name in NEEDED and given.get(NEEDED[name][0]) != str(NEEDED[name][1]):
        out.append(f"{name} without {NEEDED[name][0]}={NEEDED[name][1]}")
    if given.get("shell", "False") != "False":
        out.append(f"{name} with a shell")
    if given.get("trust_remote_code", "False") != "False":
        out.append(f"{name} with code of a repository")
    if name.endswith(".from_pretrained"):
        owner = name.rpartition(".")[0].rpartition(".")[2]
        if owner.startswith(HUB) and "trust_remote_code" not in given:
            out.append(f"{name} without trust_remote_code=False")
        if "Model" in owner and given.get("use_safetensors") != "True":
            out.append(f"{name} without use_safetensors=True")
    return out


@pytest.mark.slow
def test_nothing_that_runs_the_code_of_a_file_is_in_the_source():
    lines = {f"{file.relative_to(ROOT)}:{line}": what for file in FILES for line, what in forbidden(ast.parse(file.read_bytes()))}
    assert lines == {}
    assert len(FILES) > 200


@pytest.mark.parametrize(
    "line",
    [
        *("import pickle", "from pickle import loads", "from cloudpickle import load", "from os import system", "from torch import load"),
        *("torch.load(p)", "torch.load(p, weights_only=False)", "yaml.load(t)", "yaml.load(t, Loader=yaml.Loader)", "np.load(p)"),
        *("eval(t)", "exec(t)", "os.system(t)", "subprocess.run(t, shell=True)", "subprocess.run(t, shell=x)", "pd.read_pickle(p)"),
        *("AutoConfig.from_pretrained(p)", "AutoProcessor.from_pretrained(p, trust_remote_code=True)", "torch.hub.load(p)"),
        *("CLIPModel.from_pretrained(p)", "AutoModelForImageTextToText.from_pretrained(p, trust_remote_code=False)"),
    ],
)
def test_the_rule_sees_what_it_forbids(line):
    assert forbidden(ast.parse(line))


@pytest.mark.parametrize(
    "line",
    [
        *("torch.load(p, weights_only=True)", "yaml.safe_load(t)", "model.eval()", "re.compile(t)", "np.load(p, allow_pickle=False)"),
        *(
            "AutoConfig.from_pretrained(p, trust_remote_code=False)",
            "subprocess.run([t])",
            "CLIPModel.from_pretrained(p, use_safetensors=True)",
        ),
    ],
)
def test_the_rule_lets_the_rest_pass(line):
    assert not forbidden(ast.parse(line))
