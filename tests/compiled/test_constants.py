"""Numbers that a user's functions read from elsewhere than their arguments, and where they do."""

import random
import types
import warnings
from collections import deque
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from omegaconf import OmegaConf
from pyro.infer import RenyiELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_vae
from pyro_vae import VAE, objectives
from pyro_vae.compiled import constants

compile_eagerly = partial(pyro_vae.compile, backend="eager")
"""Runs captured graphs as they are: what is tested does not depend on the machine code."""

BETA = 1.0
SETTINGS = types.SimpleNamespace(beta=1.0, unused=0)


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.5))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0))


def scaled(x, beta):
    with pyro.plate("rows", len(x)):
        with pyro.poutine.scale(scale=beta):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def by_closure():
    beta = 1.0

    def model(x):
        scaled(x, beta)

    def set_beta(value):
        nonlocal beta
        beta = value

    return model, set_beta


def by_global():
    def set_beta(value):
        globals()["BETA"] = value

    set_beta(1.0)
    return lambda x: scaled(x, BETA), set_beta


def by_inner_function():
    _, set_beta = by_global()
    return lambda x: helper(x), set_beta


def helper(x):
    scaled(x, BETA)


def by_dictionary():
    state = {"annealing": {"beta": 1.0}}

    def set_beta(value):
        state["annealing"]["beta"] = value

    return lambda x: scaled(x, state["annealing"]["beta"]), set_beta


def by_configuration():
    settings = OmegaConf.create({"beta": 1.0})
    return lambda x: scaled(x, settings.beta), partial(setattr, settings, "beta")


def by_list():
    beta = [1.0]
    return lambda x: scaled(x, beta[0]), partial(beta.__setitem__, 0)


def by_array():
    beta = np.array(1.0)

    def set_beta(value):
        beta[...] = value

    return lambda x: scaled(x, float(beta)), set_beta


def by_numpy_number():
    box = [np.float64(1.0)]
    return lambda x: scaled(x, float(box[0])), lambda value: box.__setitem__(0, np.float64(value))


def by_namespace():
    SETTINGS.beta = 1.0
    return lambda x: scaled(x, SETTINGS.beta), partial(setattr, SETTINGS, "beta")


def by_class_attribute():
    class Settings:
        beta = 1.0

    return lambda x: scaled(x, Settings.beta), partial(setattr, Settings, "beta")


class Trainer:
    def __init__(self):
        self.beta, self.steps = 1.0, 0

    def weight(self):
        return self.beta

    def model(self, x):
        scaled(x, self.weight())

    def __call__(self, x):
        self.model(x)


def by_method():
    trainer = Trainer()
    return trainer.model, partial(setattr, trainer, "beta")


def by_callable_object():
    trainer = Trainer()
    return trainer, partial(setattr, trainer, "beta")


def by_partial():
    trainer = Trainer()
    return partial(lambda of, x: scaled(x, of.beta), trainer), partial(setattr, trainer, "beta")


def by_handler():
    model, set_beta = by_closure()
    return pyro.poutine.scale(model, scale=2.0), set_beta


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.settings = {"beta": 1.0}
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        scaled(x, self.settings["beta"])


def by_dictionary_of_a_module():
    net = Net()
    return net, partial(net.settings.__setitem__, "beta")


def by_default_argument():
    def model(x, beta=1.0):
        scaled(x, beta)

    defaults = {}

    def set_beta(value):
        model.__defaults__ = defaults.setdefault(value, (value,))

    set_beta(1.0)
    return model, set_beta


def by_default_keyword():
    def model(x, *, beta=1.0):
        scaled(x, beta)

    return model, partial(model.__kwdefaults__.__setitem__, "beta")


class Annealed:
    """A weight in all the places that a class has for it."""

    __slots__ = ("slot",)
    beta = 1.0
    shared = 1.0

    def __init__(self):
        self.slot = 1.0

    @property
    def through_property(self):
        return type(self).shared

    @staticmethod
    def through_function():
        return SETTINGS.beta

    def __getitem__(self, name):
        return BETA


def by_class_attribute_of_an_instance():
    annealed = Annealed()
    Annealed.beta = 1.0
    return lambda x: scaled(x, annealed.beta), partial(setattr, Annealed, "beta")


def by_slot():
    annealed = Annealed()
    return lambda x: scaled(x, annealed.slot), partial(setattr, annealed, "slot")


def by_property():
    annealed = Annealed()
    Annealed.shared = 1.0
    return lambda x: scaled(x, annealed.through_property), partial(setattr, Annealed, "shared")


def by_static_method():
    annealed = Annealed()
    _, set_beta = by_namespace()
    return lambda x: scaled(x, annealed.through_function()), set_beta


def by_operator():
    annealed = Annealed()
    _, set_beta = by_global()
    return lambda x: scaled(x, annealed["beta"]), set_beta


def by_computed_key():
    weights, key = {("beta", 0): 1.0}, ("beta", 0)
    return lambda x: scaled(x, weights[key]), partial(weights.__setitem__, key)


def by_nested_list():
    weights = [[1.0], deque([types.SimpleNamespace(beta=1.0)])]

    def set_beta(value):
        weights[0][0] = weights[1][0].beta = value

    return lambda x: scaled(x, weights[0][0] * weights[1][0].beta), set_beta


def by_object_from_a_function():
    box = types.SimpleNamespace(inner=types.SimpleNamespace(beta=1.0))

    def inner():
        return box.inner

    def beta_of(thing):
        return thing.beta

    return lambda x: scaled(x, beta_of(inner())), partial(setattr, box.inner, "beta")


class Model(nn.Module):
    """The class of Pyro's tutorials: model and guide are methods of a module."""

    rate = 1.0

    def __init__(self):
        super().__init__()
        self.beta = 1.0
        self.numpy = np.float64(1.0)
        self.loc = nn.Linear(1, 1)

    def model(self, x):
        scaled(x, self.beta * self.numpy * self.rate)


class Derived(Model):
    def model(self, x):
        super().model(x)


def by_method_of_a_module():
    module = Model()
    return module.model, partial(setattr, module, "beta")


def by_method_of_a_base_class():
    module = Derived()
    return module.model, partial(setattr, module, "beta")


def by_numpy_number_of_a_module():
    module = Model()
    return module.model, lambda value: setattr(module, "numpy", np.float64(value))


def by_class_attribute_of_a_module():
    module = Model()
    Model.rate = 1.0
    return lambda x: module.model(x), partial(setattr, Model, "rate")


WAYS = [
    by_default_argument, by_default_keyword, by_class_attribute_of_an_instance, by_slot,
    by_property, by_static_method, by_operator, by_computed_key, by_nested_list,
    by_object_from_a_function, by_numpy_number_of_a_module, by_class_attribute_of_a_module,
    by_closure, by_global, by_inner_function, by_dictionary, by_configuration, by_list, by_array,
    by_numpy_number, by_namespace, by_class_attribute, by_method, by_callable_object, by_partial,
    by_handler, by_dictionary_of_a_module,
]  # fmt: skip


def assert_eager_loss(made_step, model, x):
    for _ in range(2):
        torch.manual_seed(1)
        loss = made_step(x)
        torch.manual_seed(1)
        torch.testing.assert_close(loss, made_step.objective.differentiable_loss(model, guide, x))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_number_that_changes_is_never_the_old_one(way):
    model, set_beta = way()
    x = torch.ones(3)
    made_step = compile_eagerly(objectives.ELBO(), model, guide)
    assert_eager_loss(made_step, model, x)
    assert made_step.engine == "compiled"
    set_beta(10.0)
    assert_eager_loss(made_step, model, x)
    assert made_step.engine == "compiled"
    set_beta(1.0)
    assert_eager_loss(made_step, model, x)
    assert sum(map(len, made_step._cache.values())) == 2
    set_beta(3.0)
    with pytest.warns(UserWarning, match=r"changes between calls; make it a scalar") as warned:
        assert_eager_loss(made_step, model, x)
    assert made_step.engine == "eager"
    assert "test_constants.py, line" in str(warned[0].message)
    for value in (4.0, 1.0):
        set_beta(value)
        assert_eager_loss(made_step, model, x)


def test_the_message_names_variable_and_line():
    model, set_beta = by_closure()
    made_step = compile_eagerly(objectives.ELBO(), model, guide, strict=True)
    made_step(torch.ones(3))
    set_beta(2.0)
    made_step(torch.ones(3))
    set_beta(3.0)
    line = model.__code__.co_firstlineno + 1
    with pytest.raises(RuntimeError, match=rf"beta \(test_constants.py, line {line}\)"):
        made_step(torch.ones(3))


def test_a_dictionary_in_place_of_another():
    box = {"state": {"beta": 1.0}}

    def model(x):
        scaled(x, box["state"]["beta"])

    made_step = compile_eagerly(objectives.ELBO(), model, guide)
    assert_eager_loss(made_step, model, torch.ones(3))
    box["state"] = {"beta": 10.0}
    assert_eager_loss(made_step, model, torch.ones(3))
    assert made_step.engine == "compiled"


def test_data_that_a_closure_names_may_be_bound_to_other_tensors():
    rows = torch.ones(3)

    def model():
        scaled(rows, 1.0)

    made_step = compile_eagerly(objectives.ELBO(), model, lambda: guide(torch.ones(3)))
    made_step()
    rows = torch.full((3,), 7.0)
    torch.manual_seed(1)
    loss = made_step()
    torch.manual_seed(1)
    torch.testing.assert_close(
        loss, objectives.ELBO().differentiable_loss(model, lambda: guide(torch.ones(3)))
    )


def test_a_model_that_counts_its_calls_is_eager():
    calls = {"n": 0}

    def model(x):
        calls["n"] += 1
        scaled(x, 1.0)

    made_step = compile_eagerly(objectives.ELBO(), model, guide)
    with pytest.warns(UserWarning, match=r"each call changes calls\['n'\] \(test_const"):
        made_step(torch.ones(3))
    before = calls["n"]
    made_step(torch.ones(3))
    assert calls["n"] == before + 1


def test_numbers_that_no_function_names_do_not_matter():
    trainer = Trainer()
    made_step = compile_eagerly(objectives.ELBO(), trainer.model, guide, strict=True)
    for _ in range(5):
        trainer.steps += 1
        SETTINGS.unused += 1
        made_step(torch.ones(3))
    assert len(made_step._cache) == 1


def test_models_of_this_package_have_nothing_to_watch():
    vae = VAE((4,), 2)
    objective = objectives.ELBO()
    roots = [objective, vae.model, vae.guide, *vae.modules()]
    assert constants.Constants(roots).values == []


@pytest.mark.parametrize("beyond", [False, True])
def test_few_places_are_watched(beyond):
    names = [f"number_{i}" for i in range(constants.MAX_REFERENCES + 10)]
    code = "\n".join(["def model():", *(f"    {name}" for name in names)])
    variables = dict.fromkeys(names, 0) | {"__name__": "users"}
    exec(code, variables)
    found = constants.Constants([variables["model"]])
    variables[sorted(names)[-1 if beyond else 0]] = 1
    assert len(found.references) == constants.MAX_REFERENCES
    assert (found.describe_change() is None) == beyond


def reads_number(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        if z.sum() > 1e9:
            z = -z
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_a_reason_names_the_line_of_the_program():
    made_step = compile_eagerly(objectives.ELBO(), reads_number, guide)
    line = reads_number.__code__.co_firstlineno + 3
    expected = rf"depends on the values .*\(test_constants.py, line {line}: if z.sum\(\)"
    with pytest.warns(UserWarning, match=expected):
        made_step(torch.ones(3))


def test_what_the_mean_field_objective_leaves_out_is_named():
    def model():
        s = pyro.sample("s", dist.LogNormal(torch.tensor(3.0), 1.0))
        pyro.sample("x", dist.Normal(0.0, s), obs=torch.tensor(20.0))

    auto = AutoNormal(model)
    made_step = compile_eagerly(TraceMeanField_ELBO(), model, auto)
    expected = r"leaves out the log density of Delta sites, here of 's': use pyro_vae.objectives"
    with pytest.warns(UserWarning, match=expected):
        made_step()
    compile_eagerly(objectives.ELBO(), model, auto, strict=True)()


@pytest.mark.parametrize(
    ("objective", "instead"),
    [
        (RenyiELBO(alpha=0.5), r"use pyro_vae.objectives.Renyi\(alpha, num_particles\)"),
        (TraceGraph_ELBO(), r"use pyro_vae.objectives.ELBO\(\)"),
    ],
)
def test_objectives_of_pyros_without_a_differentiable_loss_are_refused(objective, instead):
    vae = VAE((4,), 2)
    with pytest.raises(ValueError, match=f"got {type(objective).__name__}: {instead}"):
        compile_eagerly(objective, vae.model, vae.guide)


@pytest.mark.parametrize("way", [by_method_of_a_module, by_method_of_a_base_class])
def test_each_value_of_a_number_of_a_module_has_its_graph(way):
    model, set_beta = way()
    made_step = compile_eagerly(objectives.ELBO(), model, guide, strict=True)
    for value in (1.0, 10.0, 3.0, 1.0):
        set_beta(value)
        assert_eager_loss(made_step, model, torch.ones(3))


@pytest.mark.parametrize("kind", [float, np.float64, np.float32])
def test_each_weight_of_the_objective_has_its_graph(kind):
    objective = objectives.ELBO()
    model = lambda x: scaled(x, 1.0)  # noqa: E731
    made_step = compile_eagerly(objective, model, guide, strict=True)
    for value in (1.0, 10.0, 3.0):
        objective.beta = kind(value)
        assert_eager_loss(made_step, model, torch.ones(3))


def test_attributes_of_an_argument_are_watched():
    settings = Trainer()

    def model(x, settings):
        scaled(x, settings.beta)

    def both(x, settings):
        guide(x)

    made_step = compile_eagerly(objectives.ELBO(), model, both)
    for value in (1.0, 10.0, 1.0):
        settings.beta = value
        torch.manual_seed(1)
        loss = made_step(torch.ones(3), settings)
        torch.manual_seed(1)
        expected = objectives.ELBO().differentiable_loss(model, both, torch.ones(3), settings)
        torch.testing.assert_close(loss, expected)
        assert made_step.engine == "compiled"


@pytest.mark.parametrize("argument", [np.ones(2), {1.0}, types.SimpleNamespace(beta=1.0)])
def test_an_argument_without_a_hash_is_named(argument):
    made_step = compile_eagerly(
        objectives.ELBO(), lambda x, _: scaled(x, 1.0), lambda x, _: guide(x)
    )
    with pytest.warns(UserWarning, match=f"an argument is a {type(argument).__name__}: pass the"):
        made_step(torch.ones(3), argument)
    assert made_step.engine == "eager"


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_random_numbers_of_python_and_numpy_are_noticed(draw):
    def model(x):
        scaled(x, 1.0 + draw())

    def seed():
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)

    made_step = compile_eagerly(objectives.ELBO(), model, guide)
    seed()
    with pytest.warns(UserWarning, match="drawn by Python or NumPy"):
        losses = [made_step(torch.ones(3)) for _ in range(2)]
    seed()
    for loss in losses:
        expected = objectives.ELBO().differentiable_loss(model, guide, torch.ones(3))
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("read", [False, True])
def test_a_tensor_of_a_closure_is_changed_once_in_each_call(read):
    calls = torch.zeros(())

    def model(x):
        calls.add_(1.0)
        scaled(x + calls if read else x, 1.0)

    made_step = compile_eagerly(objectives.ELBO(), model, guide, strict=True)
    for n in range(1, 4):
        torch.manual_seed(n)
        loss = made_step(torch.ones(3))
        assert calls == n
        calls.sub_(1.0)
        torch.manual_seed(n)
        torch.testing.assert_close(
            loss, objectives.ELBO().differentiable_loss(model, guide, torch.ones(3))
        )


def test_data_in_memory_that_cannot_be_written_to(tmp_path):
    np.save(tmp_path / "rows.npy", np.ones(3, np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = torch.from_numpy(np.load(tmp_path / "rows.npy", mmap_mode="r"))
    wide = torch.ones(1).expand(3)
    with torch.inference_mode():
        inferred = torch.ones(3)
    made_step = compile_eagerly(
        objectives.ELBO(), lambda x: scaled(rows * wide * inferred, 1.0), guide, strict=True
    )
    assert made_step(torch.ones(3)).isfinite()


def test_a_layer_in_place_of_another_and_a_hook_are_followed():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Tanh()

        def forward(self, x):
            scaled(self.layer(x), 1.0)

    net = Two()
    made_step = compile_eagerly(objectives.ELBO(), net, guide, strict=True)
    assert_eager_loss(made_step, net, torch.ones(3))
    net.layer = nn.ReLU()
    assert_eager_loss(made_step, net, torch.ones(3))
    net.layer.register_forward_hook(lambda module, inputs, out: 2 * out)
    assert_eager_loss(made_step, net, torch.ones(3))
