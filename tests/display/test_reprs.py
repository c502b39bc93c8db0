"""What a prompt or a notebook shows of results: a few lines without tensors, and escaped HTML."""

import io

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import pyro_vae
from pyro_vae import VAE, FitResult, data, evaluate, objectives, plots
from pyro_vae.compare.comparison import Comparison
from pyro_vae.display.html import render_curves, render_list, render_table
from pyro_vae.display.text import describe_arguments, describe_tensor
from pyro_vae.evaluate import baseline

HISTORY = [{"epoch": n, "train_objective": -n / 3, "valid_elbo": -1 / n} for n in range(1, 31)]
RESULT = FitResult(HISTORY, 29, 30, 1.23456789, "eager")
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def vae():
    return VAE((1, 8, 8), latent_dim=2)


def shown(value):
    text = repr(value)
    assert "tensor(" not in text
    assert " at 0x" not in text
    assert len(text) < 1000
    assert len(text.splitlines()) <= 16
    return text


def test_data_are_shown_by_dtype_and_shape():
    digits = data.digits()
    assert shown(digits.train) == "Rows(x=float32[1258, 1, 8, 8])"
    assert "test=float32[359, 1, 8, 8]" in shown(digits)
    assert shown(digits.train.batch(slice(3))).startswith("Batch(x=float32[3, 1, 8, 8], mask=None")
    assert shown(digits.preparation)
    assert "sparse float32[4, 4]" in shown(data.Rows(torch.eye(4).to_sparse()))


def test_a_table_of_many_columns_is_short():
    columns = [data.Column(f"column {n}", "categorical", ("a", "b")) for n in range(500)]
    schema = data.Schema(tuple(columns))
    assert "and 492 others" in shown(schema)
    names = tuple(column.name for column in columns)
    shown(data.Preparation((500,), "none", names, schema=schema))
    covariates = data.Covariates.fit({"batch": 2 * [str(n) for n in range(500)]})
    shown(covariates)
    shown(data.Scaling(torch.zeros(500), torch.ones(500)))


def test_results_show_means_and_errors(vae, binary):
    assert "(mean -" in shown(evaluate.elbo(vae, binary))
    evidence = evaluate.log_evidence(vae, binary, 5, diagnostics=True)
    assert " ± " in shown(evidence)
    assert " ± " not in shown(evaluate.elbo(vae, binary[:1]))
    shown(evaluate.impute(vae, binary, binary > 0.5, num_particles=5))
    shown(baseline.mixture(vae.likelihood, binary, binary, binary, components=2, iterations=1))
    shown(objectives.IWAE(3).values(vae.model, vae.guide, binary))


def test_a_training_shows_its_best_epoch():
    assert "[30 epochs, valid_elbo -0.034 at best_epoch]" in shown(RESULT)
    assert "[0 epochs]" in shown(FitResult([], 0, 0, 0.0, "eager"))
    assert "failure='NaN'" in shown(RESULT._replace(failure="NaN"))


def test_an_objective_is_shown_as_its_call(vae):
    assert shown(objectives.IWAE(50)) == "IWAE(num_particles=50)"
    assert shown(objectives.ELBO(beta=torch.tensor(0.5))) == "ELBO(num_particles=1, beta=0.5)"
    for name in ("CIWAE", "Capacity", "FreeBits", "Jackknife", "MIWAE", "Renyi"):
        if hasattr(objectives, name):
            assert shown(getattr(objectives, name)()).startswith(f"{name}(num_particles=")
    step = pyro_vae.compile(objectives.ELBO(), vae.model, vae.guide)
    assert shown(step) == "Step(ELBO(num_particles=1), engine=None)"


def test_an_argument_without_attribute_is_left_out():
    class Odd:
        def __init__(self, kept=1, lost=2, **others):
            self.kept = kept

    assert describe_arguments(Odd(5)) == "Odd(kept=5)"


def test_named_tuples_keep_their_fields():
    rows = data.Rows(torch.ones(2, 3))
    x, *others = rows
    assert x is rows.x
    assert others == [None, False, None]
    assert rows._fields == ("x", "mask", "dynamic", "covariates")


def test_a_scalar_is_shown_by_its_value():
    assert describe_tensor(torch.tensor(3)) == "3"
    assert describe_tensor(torch.zeros(0, 2)) == "float32[0, 2]"


def test_html_is_escaped_and_has_no_scripts():
    pages = [
        RESULT._replace(engine=EVIL, failure=EVIL)._repr_html_(),
        Comparison(EVIL, (), (), (), (EVIL,))._repr_html_(),
        render_table([[EVIL]], [EVIL], caption=EVIL),
        render_list([EVIL]),
        render_curves({EVIL: [0.0, 1.0]}),
    ]
    for page in pages:
        assert "&lt;script&gt;" in page
        assert "<script" not in page


def test_the_table_of_a_training_has_its_metrics_and_its_curve():
    page = RESULT._repr_html_()
    assert "29 of 30" in page
    assert page.count("<polyline") == 2
    assert "<polyline" not in FitResult(HISTORY[:1], 1, 1, 1.0, "eager")._repr_html_()
    assert "0 of 0" in FitResult([], 0, 0, 0.0, "eager")._repr_html_()


def test_new_axes_are_shown_as_a_picture():
    ax = plots.images(torch.zeros(2, 1, 4, 4).numpy())
    assert ax._repr_png_().startswith(b"\x89PNG")
    assert ax.figure._repr_png_().startswith(b"\x89PNG")


def test_axes_of_the_caller_are_left_to_pyplot():
    ax = Figure().add_subplot()
    assert plots.images(torch.zeros(2, 1, 4, 4).numpy(), ax=ax) is ax
    assert not hasattr(ax, "_repr_png_")
    assert type(ax) is Axes


def test_figures_can_be_saved_and_pickled():
    import pickle

    ax = plots.lines([1, 2], {"a": [0.0, 1.0]})
    copy = pickle.loads(pickle.dumps(ax.figure))
    copy.savefig(io.BytesIO(), format="svg")
