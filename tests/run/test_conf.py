"""The configuration: every option composes, fits its target and trains."""

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import hydra
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object
from omegaconf import OmegaConf
from pyro.infer import TraceEnum_ELBO, config_enumerate

import pyro_vae
from helpers.tables import EVENT
from pyro_vae import config, evaluate
from pyro_vae.evaluate import baseline

CONF = config.find_folder()
GIVEN = {"event_shape": EVENT}


def options() -> list[tuple[str, str]]:
    """All options but those of Hydra itself, which only a sweep composes."""
    found = []
    for root in (CONF / "app", CONF / "share"):
        found += [
            (str(path.parent.relative_to(root)), path.stem)
            for path in root.rglob("*.yaml")
            if path.parent != root and "hydra" not in path.relative_to(root).parts
        ]
    return sorted(found)


def targets(node):
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for child in node.values():
            yield from targets(child)


def test_the_walk_finds_the_groups():
    groups = {group for group, _ in options()}
    assert groups >= {"vae", "vae/prior", "vae/posterior", "vae/likelihood", "data", "objective"}
    assert len(options()) >= 22


@pytest.mark.parametrize(("group", "option"), options())
def test_option_composes_and_fits_its_target(group, option):
    cfg = config.compose([f"{group}={option}", "out=."])
    assert not OmegaConf.missing_keys(cfg)
    nodes = list(targets(OmegaConf.to_container(cfg, resolve=True)))
    assert len(nodes) >= 9
    for node in nodes:
        kwargs = {key: value for key, value in node.items() if not key.startswith("_")}
        inspect.signature(get_object(node["_target_"])).bind_partial(**kwargs)


COMPANIONS = {
    "vae/prior=dirichlet": ["vae/posterior=logistic_normal"],
    "vae/prior=logistic_normal": ["vae/posterior=logistic_normal"],
    "vae/prior=relaxed_one_hot": ["vae/posterior=relaxed_one_hot"],
    "vae/prior=uniform_sphere": ["vae/posterior=power_spherical"],
    "vae/prior=one_hot": ["vae/posterior=straight_through"],
    "vae/prior=autoregressive": ["vae/posterior=straight_through"],
    "vae/posterior=logistic_normal": ["vae/prior=dirichlet"],
    "vae/posterior=relaxed_one_hot": ["vae/prior=relaxed_one_hot"],
    "vae/posterior=power_spherical": ["vae/prior=uniform_sphere"],
    "vae/posterior=straight_through": ["vae/prior=one_hot", "vae.prior.learned=true"],
    "vae/posterior=one_hot": ["vae/prior=one_hot", "objective=trace_enum_elbo"],
    "objective=trace_enum_elbo": ["vae/prior=one_hot", "vae/posterior=one_hot"],
}
"""The options that others need."""


@pytest.mark.parametrize(
    ("group", "option"), [pair for pair in options() if pair[0].startswith(("vae", "objective"))]
)
def test_option_builds_and_takes_a_step(group, option):
    overrides = [f"{group}={option}", "out=.", *COMPANIONS.get(f"{group}={option}", ())]
    if option == "conv":
        overrides.append(f"{group.replace('/', '.')}.channels=[4]")
    event = EVENT
    if option == "columns":
        # Only a table has columns.
        columns = "[{name: a, kind: real}, {name: b, kind: count}]"
        overrides += ["vae/likelihood=columns", f"vae.likelihood.columns={columns}"]
        event = (2,)
    cfg = config.compose(overrides)
    vae = config.build(cfg.vae, event_shape=event)
    objective = config.build(cfg.objective)
    x = torch.full((4, *event), 0.5 if option == "beta" else 1.0)
    enumerates = isinstance(objective, TraceEnum_ELBO)
    guide = config_enumerate(vae.guide, "parallel") if enumerates else vae.guide
    loss = objective.differentiable_loss(vae.model, guide, x)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in vae.parameters())


OTHER_DEFAULTS = {
    "objective/capacity: capacity", "vae/decoder/mlp: hidden", "vae/encoder/mlp: hidden",
    # What makes it another option than the prior that is not learned.
    "vae/prior/normal_learned: learned",
    # The same class, of another library.
    "tracker/trackio: library",
}  # fmt: skip
"""Settings whose default of the commands is another than that of the function."""


def test_the_defaults_of_the_commands_are_those_of_the_functions():
    differ = set()
    for group, option in options():
        root = CONF / ("share" if group.startswith("vae") else "app")
        node = OmegaConf.to_container(OmegaConf.load(root / group / f"{option}.yaml"))
        if not str(node.get("_target_")).startswith("pyro_vae."):
            continue
        parameters = inspect.signature(get_object(node["_target_"])).parameters
        for name, value in node.items():
            default = getattr(parameters.get(name), "default", value)
            expected = list(default) if isinstance(default, tuple) else default
            if expected not in (value, inspect.Parameter.empty):
                differ.add(f"{group}/{option}: {name}")
    assert differ == OTHER_DEFAULTS


def test_a_run_is_judged_as_by_the_functions():
    settings = config.compose(["out=."]).evaluate
    for name, function, argument in (
        ("num_particles", evaluate.log_evidence, "num_particles"),
        ("baseline_components", baseline.mixture, "components"),
    ):
        assert settings[name] == inspect.signature(function).parameters[argument].default


def test_lists_arrive_as_lists():
    vae = config.build(config.compose(["out=."]).vae, event_shape=EVENT)
    assert isinstance(vae.encoder.out_shape, torch.Size)
    assert "ListConfig" not in repr([type(v) for m in vae.modules() for v in vars(m).values()])


def test_build_raises_the_value_error_of_the_target():
    cfg = config.compose(["vae.latent_dim=0", "out=."])
    with pytest.raises(
        ValueError, match="Expected latent_dim to be an integer of at least 1, got 0"
    ):
        config.build(cfg.vae, event_shape=EVENT)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("vae/prior=nonsense", "nonsense"),
        ("vae.nonsense=1", "nonsense"),
        ("nonsense=1", "nonsense"),
    ],
)
def test_unknown_option_is_named(override, message):
    with pytest.raises(hydra.errors.HydraException, match=message):
        config.compose([override, "out=."])


def test_other_applications_see_the_group_vae_and_nothing_else(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.yaml").write_text(
        "defaults:\n  - vae: default\n  - vae/prior@second: vamp\n  - _self_\n"
    )
    (tmp_path / "app.py").write_text(
        "import sys, hydra\n"
        "@hydra.main(version_base='1.3', config_path='c', config_name='config')\n"
        "def main(cfg):\n"
        "    assert 'torch' not in sys.modules\n"
        "    from hydra.utils import instantiate\n"
        "    print(type(instantiate(cfg.vae, event_shape=(2, 4)).posterior).__name__)\n"
        "    print(cfg.second._target_)\n"
        "main()\n"
    )

    def call(*arguments):
        return subprocess.run(
            [sys.executable, "app.py", *arguments],
            cwd=tmp_path, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip

    assert call("vae/posterior=full").split() == ["Full", "pyro_vae.priors.Vamp"]
    text = call("--help")
    listed = text.split("(group=option)")[1].split("== Config ==")[0]
    groups = {line.split(":")[0] for line in listed.splitlines() if ":" in line}
    assert groups == {"vae"} | {
        f"vae/{role}"
        for role in ("prior", "posterior", "likelihood", "encoder", "decoder", "input_transform")
    }


def test_installed_plugin_is_the_one_of_this_checkout():
    plugin = import_module("hydra_plugins.pyro_vae")
    source = Path(pyro_vae.__file__).parent / "_hydra_plugin.py"
    if source.is_file():
        assert Path(plugin.__file__).read_text() == source.read_text(), (
            "The plugin was changed after the installation: install the package again"
        )
    assert plugin.PyroVaeSearchPathPlugin.__name__


@pytest.mark.parametrize(
    "text",
    [
        ".1",
        "-1",
        "1e5",
        "null",
        "True",
        "..",
        "./a",
        "a b",
        "${x}",
        "\\${x}",
        "\\\\${x}",
        "a\\",
        "'\"\\",
        "",
    ],
)
def test_quoted_text_is_read_as_it_was(text):
    override = OverridesParser.create().parse_override(f"key={config.quote_value(text)}")
    assert OmegaConf.create({"key": override.value()}).key == text
